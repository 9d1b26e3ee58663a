"""What a rewrite is: the contract between the planner and each fold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from exporter.artifacts import Refusal
from exporter.graph.abstract import AbstractGraph, Operator
from exporter.graph.algebra import Float64

__all__ = ["Constants", "Match", "Rewrite"]


class Constants(Protocol):
    """The numbers of constant values, exact in float64."""

    def read(self, value: str) -> Float64:
        """Return the numbers of ``value``."""
        ...

    def dtype(self, value: str) -> str:
        """Return the dtype that the program keeps ``value`` in: ``float32``, ``bfloat16``, ..."""
        ...


@dataclass(frozen=True, slots=True)
class Match:
    """A BatchNorm that a rewrite can take, and the operator that takes it."""

    affine: Operator
    producer: Operator


@dataclass(frozen=True, slots=True, eq=False)
class Rewritten:
    """New numbers of the producer, still in float64, and the largest ``|s|``."""

    weight: Float64
    bias: Float64
    max_scale: float


class Rewrite(Protocol):
    """One exact fold."""

    def requires(self, graph: AbstractGraph, affine: Operator) -> Match | Refusal:
        """Return the match, or the first reason against it. Looks at the graph only, not at numbers."""
        ...

    def apply(self, match: Match, constants: Constants) -> Rewritten:
        """Return the producer's new numbers, in float64."""
        ...

    def ensures(self, match: Match, rewritten: Rewritten, constants: Constants) -> Refusal | None:
        """Return None where the new numbers can stand in the program, else why they cannot."""
        ...
