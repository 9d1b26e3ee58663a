"""The network in few rows: products with the BatchNorms that they took, BatchNorms that stand for themselves, sums, concatenations.

What only passes values on, and what follows an operator alone (its activation), stands in the row of that operator. Rows are in the order
of execution. Each value that a later row reads runs down a lane of its own, as branches do in the history of a repository:

    lane 0 1
         o        stem
         ├─o      branch
         +─┘      add
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from exporter.artifacts import Folded, Refusal, Sketch, SketchNode

__all__ = ["Lanes", "NetworkRow", "RowKind", "lanes_of", "rows_of"]

RowKind: TypeAlias = Literal["input", "product", "took", "kept", "back", "ahead", "beside", "join", "other"]
"""``took``: a product with BatchNorms in it; ``back``, ``ahead``, ``beside``: a BatchNorm that was folded into another row."""


@dataclass(slots=True)
class NetworkRow:
    """An operator that matters, with what stands in its row.

    Attributes:
        node: the operator.
        taken: BatchNorms right behind it that were folded into it.
        behind: kinds of the operators after it in its row.
        reads: earlier rows.
        fate: of a BatchNorm that has the row for itself.
    """

    kind: RowKind
    node: SketchNode
    reads: tuple[int, ...]
    taken: list[Folded] = field(default_factory=list)
    behind: list[str] = field(default_factory=list)
    is_output: bool = False
    fate: Folded | Refusal | None = None


@dataclass(frozen=True, slots=True)
class Lanes:
    """Where the rows stand.

    Attributes:
        lane: of each row.
        last_reader: the last row that reads each row; the row itself where nothing does.
    """

    lane: tuple[int, ...]
    last_reader: tuple[int, ...]


def rows_of(sketch: Sketch, folded: Sequence[Folded], refusals: Sequence[Refusal]) -> list[NetworkRow]:
    """Return the rows of a network."""
    every: list[Folded | Refusal] = [*folded, *refusals]
    fates = {item.batch_norm: item for item in every}
    num_readers = [0] * len(sketch.nodes)
    for node in sketch.nodes:
        for read in node.reads:
            num_readers[read] += 1
    rows: list[NetworkRow] = []
    row_of: list[int] = []
    last: list[int] = []
    for place, node in enumerate(sketch.nodes):
        reads = tuple(dict.fromkeys(row_of[read] for read in node.reads))
        fate = fates.get(node.module) if node.part in {"batch_norm", "affine"} else None
        row = rows[reads[0]] if len(reads) == 1 else None
        follows = row is not None and len(node.reads) == 1 and last[reads[0]] == node.reads[0] and num_readers[node.reads[0]] == 1
        if row is not None and _joins(row, node, fate, follows=follows):
            if isinstance(fate, Folded):
                row.taken.append(fate)
                row.kind = "took"
            elif follows and node.kind not in row.behind:
                row.behind.append(node.kind.rstrip("_"))
            row.is_output = row.is_output or node.is_output
            row_of.append(reads[0])
            if follows:
                last[reads[0]] = place
            continue
        row_of.append(len(rows))
        last.append(place)
        rows.append(NetworkRow(_kind(node, fate), node, reads, is_output=node.is_output, fate=fate))
    return rows


def _joins(row: NetworkRow, node: SketchNode, fate: Folded | Refusal | None, *, follows: bool) -> bool:
    """Return whether an operator stands in the row of what it reads."""
    if node.part == "passes":
        return True
    if isinstance(fate, Folded):
        product = row.node.module or row.node.kind
        return follows and fate.direction == "back" and row.kind in {"product", "took"} and fate.producer == product
    return follows and node.part in {"other", "scale"} and row.kind != "input"


def _kind(node: SketchNode, fate: Folded | Refusal | None) -> RowKind:
    if isinstance(fate, Folded):
        return "back" if fate.direction == "constant" else fate.direction
    if isinstance(fate, Refusal):
        return "kept"
    if node.part in {"sum", "concat"}:
        return "join"
    if node.part == "batch_norm":
        return "kept"
    return node.part if node.part in {"input", "product"} else "other"


def lanes_of(rows: Sequence[NetworkRow]) -> Lanes:
    """Lay the rows out: a row takes the leftmost lane that one of its inputs leaves, else the leftmost that is free."""
    last_reader = list(range(len(rows)))
    for place, row in enumerate(rows):
        for read in row.reads:
            last_reader[read] = place
    taken: dict[int, int] = {}  # lane -> the row whose value runs in it
    lanes: list[int] = []
    for place, row in enumerate(rows):
        left = [lanes[read] for read in row.reads if last_reader[read] == place]
        for lane in left:
            taken.pop(lane, None)
        lane = min(left) if left else next(number for number in range(len(rows)) if number not in taken)
        lanes.append(lane)
        if last_reader[place] > place:
            taken[lane] = place
    return Lanes(tuple(lanes), tuple(last_reader))
