"""A weight that is computed whenever it is read, and never kept: in float64 all weights together take twice their memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from exporter.graph.algebra import FORMATS, Float64, rounded_once, scaled_by

__all__ = ["Factor", "LateWeight", "rounded"]

Factor: TypeAlias = "Callable[[Sequence[int]], Float64]"
"""Gives for the shape of a weight what it is multiplied by: an array of as many axes, each as long or 1."""

_BLOCK = 1 << 15
"""Numbers that are in work at once: in float64 they fit the caches of one core, and a step over all of a weight does not."""


class LateWeight:
    """A constant, and what scales it, one after the other; the numbers are those that the same steps give at once.

    Args:
        given: returns the constant, the same each time, in any dtype whose numbers float64 holds.
        factors: what it is multiplied by, in order.
        bound: returns what no number is larger than in magnitude; NaN where a number may be NaN.
    """

    __slots__ = ("_bound", "_factors", "_given", "_known")

    def __init__(self, given: Callable[[], NDArray[Any]], factors: tuple[Factor, ...] = (), bound: Callable[[], float] | None = None) -> None:
        self._given = given
        self._factors = factors
        self._bound = bound
        self._known: float | None = None

    @property
    def bound(self) -> float:
        """Return what no number is larger than in magnitude; NaN where a number may be NaN. It is looked for once."""
        if self._known is None:
            self._known = _largest(self._given()) if self._bound is None else self._bound()
        return self._known

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape."""
        return self._given().shape

    def scaled(self, factor: Factor, s: Float64) -> LateWeight:
        """Return the weight times ``factor``, whose numbers are those of ``s``.

        A product that is rounded grows with its factors, so that of the largest two is a bound.
        """
        return LateWeight(self._given, (*self._factors, factor), lambda: self.bound * _largest(s))

    def read(self) -> Float64:
        """Return all numbers."""
        given = self._given()
        made: Float64 = given.astype(np.float64, copy=False)
        for factor in self._factors:
            made = scaled_by(made, factor(given.shape))
        return made

    def rounded(self, dtype: str) -> NDArray[Any]:
        """Return the numbers rounded once to ``dtype``, in an array of their own; in float64 there is never more than a block of rows."""
        given = self._given()
        factors = [factor(given.shape) for factor in self._factors]
        made = np.empty(given.shape, FORMATS[dtype])
        rows = max(1, _BLOCK * len(given) // max(given.size, 1))
        with np.errstate(invalid="ignore", over="ignore"):
            for first in range(0, len(given), rows):
                here = slice(first, first + rows)
                block: Float64 = given[here].astype(np.float64)
                for factor in factors:
                    block *= factor if len(factor) == 1 else factor[here]
                made[here] = block if dtype == "float32" else rounded_once(block, dtype)  # to which NumPy rounds as it writes
        return made


def rounded(numbers: Float64 | LateWeight, dtype: str) -> NDArray[Any]:
    """Return ``numbers`` rounded once to the nearest values of ``dtype``."""
    return numbers.rounded(dtype) if isinstance(numbers, LateWeight) else rounded_once(numbers, dtype)


def _largest(numbers: NDArray[Any]) -> float:
    """Return the largest magnitude; NaN where a number is NaN."""
    if numbers.dtype not in (np.float32, np.float64):  # the others are slow to compare, or without a rule for NaN
        numbers = numbers.astype(np.float64)
    return float(np.maximum(numbers.max(), -numbers.min())) if numbers.size else 0.0
