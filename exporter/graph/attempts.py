"""What a planner tried, and what came of it: enough to try the same again on other numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from exporter.artifacts import Refusal
from exporter.graph.algebra import largest_of
from exporter.graph.rewrites.contract import Bypass, Copy, Match, Rewrite, Rewritten
from exporter.graph.rewrites.linear_numbers import LinearNumbers

__all__ = ["Attempt", "Outline", "attempt_of", "num_not_finite", "outline_of"]


@dataclass(frozen=True, slots=True)
class Outline:
    """What becomes of the graph, without the numbers.

    Attributes:
        parts: operator -> which of its numbers there are: ``("weight", "bias")``.
    """

    parts: Mapping[str, tuple[str, ...]]
    bypasses: tuple[Bypass, ...]
    copies: tuple[Copy, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """A rewrite that fitted the graph around a BatchNorm, and what its numbers said.

    Attributes:
        rewrite: name of its class.
        outline: what it came to; None where the numbers did not allow it.
        is_finite: whether the dtypes of the weights can hold its numbers.
        is_taken: whether it was carried out; what was too dear was not.
    """

    rewrite: str
    match: Match
    outline: Outline | None
    is_finite: bool
    is_taken: bool


def attempt_of(rewrite: Rewrite, match: Match, outcome: Rewritten | Refusal, objection: Refusal | None, *, is_finite: bool) -> Attempt:
    """Return what is to be remembered of an attempt.

    Args:
        rewrite, match: what was tried.
        outcome: what ``apply`` gave.
        objection: why it was not carried out.
        is_finite: whether the dtypes of the weights can hold the numbers.
    """
    outline = None if isinstance(outcome, Refusal) else outline_of(outcome)
    return Attempt(type(rewrite).__name__, match, outline, is_finite, objection is None)


def outline_of(rewritten: Rewritten) -> Outline:
    """Return what becomes of the graph, without the numbers."""
    return Outline({name: _parts(numbers) for name, numbers in rewritten.numbers.items()}, rewritten.bypasses, rewritten.copies)


def num_not_finite(numbers: LinearNumbers, dtype: str) -> tuple[int, int]:
    """Return how many numbers a dtype cannot hold, and how many there are in the arrays with such numbers."""
    largest, lost, size = largest_of(dtype), 0, 0
    for array in numbers.may_exceed(largest):
        if array.size and not (array.max() <= largest and array.min() >= -largest):  # no array in between; True for NaN
            lost += int(np.count_nonzero(~(np.abs(array) <= largest)))
            size += array.size
    return lost, size


def _parts(numbers: LinearNumbers) -> tuple[str, ...]:
    return tuple(part for part in ("weight", "bias", "border", "ones") if part == "weight" or getattr(numbers, part) is not None)
