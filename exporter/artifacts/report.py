"""Stage 7: everything about one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from exporter.artifacts.graph import Cost, Folded, Refusal
from exporter.artifacts.sketch import Sketch
from exporter.artifacts.verdicts import Outcome, Verdict
from exporter.artifacts.weights import BakeSummary

__all__ = ["Report", "StageRecord"]


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What one stage of a run did."""

    stage: str
    state: Literal["made", "up to date", "NOT_RUN"]
    seconds: float
    summary: str
    path: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a run found out; rendered by ``report/``, stored as ``report.json``."""

    run: str
    """Name of the run folder: ``2026-11-21-1``."""
    started: str
    """ISO 8601 with offset."""
    seconds: float
    outcome: Outcome
    stages: tuple[StageRecord, ...]
    verdicts: tuple[Verdict, ...]
    lineage: Mapping[str, str]
    config: Mapping[str, Any]
    environment: Mapping[str, str]
    bake: BakeSummary | None = None
    folded: tuple[Folded, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    absorbed: tuple[Folded, ...] = ()
    """Products and sums with constants that stood alone and are gone; empty in reports of earlier releases."""
    sketch: Sketch | None = None
    """The unfolded network, for its picture; None in reports of earlier releases."""
    costs: tuple[Cost, ...] = ()
    """Of a run of the graph before and after folding; empty in reports of earlier releases."""
    histogram_edges: tuple[float, ...] = ()
    remarks: tuple[str, ...] = ()
