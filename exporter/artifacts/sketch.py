"""The unfolded network as a person sees it: its operators, what reads what, and what became of each BatchNorm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Explanation", "Neighbour", "Part", "Sketch", "SketchNode"]

Part: TypeAlias = Literal["input", "product", "batch_norm", "affine", "scale", "sum", "concat", "passes", "other"]
"""What the fold sees in an operator: a product with a weight, a BatchNorm, a map of each channel that nobody calls one, a sum, a
concatenation, something that passes a map of each channel on, anything else."""


@dataclass(frozen=True, slots=True)
class SketchNode:
    """An input of the network, or an operator that its data flow through.

    Attributes:
        module: name of the module of the user's that it belongs to, where there is one; of an input, how messages call it.
        kind: short name for people: ``conv2d``, ``relu``.
        shape: of its output, as text: ``N x 64 x 8 x 8``.
        reads: places in the sketch of what it reads; constants are left out.
        source: the line of the user's code that calls it, where it is known: ``net.py:12``.
    """

    module: str
    kind: str
    part: Part
    shape: str = ""
    reads: tuple[int, ...] = ()
    is_output: bool = False
    source: str = ""

    @property
    def label(self) -> str:
        """Return how messages call it: ``stem.0 (conv2d)``."""
        if self.part == "input" or not self.module:
            return self.module or self.kind
        return f"{self.module} ({self.kind})"


@dataclass(frozen=True, slots=True)
class Sketch:
    """The operators in the order of execution; what a node reads stands before it."""

    nodes: tuple[SketchNode, ...] = ()


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An operator near a BatchNorm.

    Attributes:
        place: on the way to it, the BatchNorm itself, another reader of what it is made from, or on the way from it.
        step: how many operators away from it.
        reads: places in ``Explanation.neighbours``; of another reader, the one that matters.
        is_culprit: whether the refusal names it.
        takes_it: whether the BatchNorm was folded into it.
        num_hidden: how many more operators stand before, beside or behind it than are shown.
    """

    module: str
    kind: str
    part: Part
    shape: str
    place: Literal["before", "itself", "beside", "behind"]
    step: int
    reads: tuple[int, ...] = ()
    is_output: bool = False
    is_culprit: bool = False
    takes_it: bool = False
    num_hidden: int = 0
    source: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What became of a BatchNorm, why, and what stands around it.

    Attributes:
        why: one sentence.
        remedy: what its user can do about it; empty where it is folded.
        neighbours: in the order of execution; empty where it does not stand in the network's own graph.
    """

    batch_norm: str
    outcome: Literal["kept", "folded"]
    why: str
    remedy: str = ""
    neighbours: tuple[Neighbour, ...] = ()
