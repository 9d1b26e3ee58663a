"""A weight that is computed whenever it is read, and never kept: in float64 all weights together take twice their memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from exporter.graph.algebra import Float64

__all__ = ["LateWeight"]


class LateWeight:
    """A constant, and what scales it, one after the other; the numbers are those that the same steps give at once.

    Args:
        read: returns the numbers, the same each time.
        bound: returns what no number is larger than in magnitude; NaN where a number may be NaN.
    """

    __slots__ = ("_bound", "_known", "read")

    def __init__(self, read: Callable[[], Float64], bound: Callable[[], float] | None = None) -> None:
        self.read = read
        self._bound = bound
        self._known: float | None = None

    @property
    def bound(self) -> float:
        """Return what no number is larger than in magnitude; NaN where a number may be NaN. It is looked for once."""
        if self._known is None:
            self._known = _largest(self.read()) if self._bound is None else self._bound()
        return self._known

    def scaled(self, scale: Callable[[Float64], Float64], s: Float64) -> LateWeight:
        """Return the weight that ``scale`` makes of this one: each number times one of ``s``.

        A product that is rounded grows with its factors, so that of the largest two is a bound.
        """
        return LateWeight(lambda: scale(self.read()), lambda: self.bound * _largest(s))


def _largest(numbers: Float64) -> float:
    """Return the largest magnitude; NaN where a number is NaN."""
    return float(np.maximum(numbers.max(), -numbers.min())) if numbers.size else 0.0
