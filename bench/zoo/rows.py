"""The record of a run: one line of JSON for each network and tool; and the tables that are made of it."""

from __future__ import annotations

import dataclasses
import gzip
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["Row", "add_row", "per_network", "per_peer", "read_rows"]

Outcome = Literal["right", "wrong", "failed", "absent"]


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one network in one tool.

    Attributes:
        peer: the tool; ours also with its level: `ours:aggressive`.
        outcome: `failed` where it raised or crashed, `absent` where it is for other networks.
        total: BatchNorms that run in the unfolded network.
        left: those that still run.
        as_convolutions: those that run as a convolution of their own now.
        error, noise: of the tool's network and of the unfolded one, both in float32 against float64.
        seconds: processor time of the fold.
    """

    network: str
    peer: str
    outcome: Outcome
    total: int = 0
    left: int = 0
    as_convolutions: int = 0
    error: float = 0.0
    noise: float = 0.0
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def removed(self) -> int:
        """Return the number of BatchNorms that are gone, not by name only."""
        return max(self.total - self.left - self.as_convolutions, 0)

    @property
    def shown(self) -> str:
        """Return it as the tables show it."""
        return {"failed": "failed", "absent": "", "wrong": f"WRONG {self.removed}", "right": str(self.removed)}[self.outcome]


def read_rows(path: Path) -> dict[tuple[str, str], Row]:
    """Return the rows by network and tool; a later one stands for an earlier one."""
    if not path.exists():
        return {}
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text(encoding="utf-8")
    rows = [Row(**json.loads(line)) for line in text.splitlines() if line.strip()]
    return {(row.network, row.peer): row for row in rows}


def add_row(path: Path, row: Row) -> None:
    """Add a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(row)) + "\n")


def per_peer(rows: Iterable[Row], peers: Sequence[str]) -> tuple[list[str], list[list[object]]]:
    """Return a table of the tools: a wrong answer removes nothing, and neither does one that did not come."""
    header = ["tool", "ran", "failed", "wrong", "removed right", "of all", "%", "as convolution", "networks without", "median s"]
    table: list[list[object]] = []
    for peer in peers:
        own = [row for row in rows if row.peer == peer and row.outcome != "absent"]
        if not own:
            continue
        ran = [row for row in own if row.outcome != "failed"]
        right = [row for row in own if row.outcome == "right"]
        total, removed = sum(row.total for row in own), sum(row.removed for row in right)
        table.append([
            *(peer, len(ran), len(own) - len(ran), len(ran) - len(right), removed, total, round(100 * removed / max(total, 1), 2)),
            *(sum(row.as_convolutions for row in right), sum(row.removed == row.total for row in right)),
            statistics.median(row.seconds for row in ran) if ran else 0.0,
        ])  # fmt: skip
    return header, table


def per_network(rows: Iterable[Row], networks: Sequence[str], peers: Sequence[str]) -> tuple[list[str], list[list[object]]]:
    """Return a table of the networks: BatchNorms that each tool removed, and what of ours is more than a number."""
    by_key = {(row.network, row.peer): row for row in rows}
    shown = [peer for peer in peers if any(key[1] == peer for key in by_key)]
    header = ["network", "BatchNorms", *shown, "our error in float64", "kept by us"]
    table: list[list[object]] = []
    for network in networks:
        own = by_key.get((network, "ours"))
        cells: list[object] = [by_key[network, peer].shown if (network, peer) in by_key else "not run" for peer in shown]
        facts = own.facts if own is not None else {}
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(facts.get("kept", {}).items()))
        total = max((by_key[network, peer].total for peer in shown if (network, peer) in by_key), default=0)
        table.append([network, total, *cells, facts.get("error in float64", ""), reasons])
    return header, table
