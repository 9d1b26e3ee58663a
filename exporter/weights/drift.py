"""How far the average is from the raw weights, accumulated in float64 while the bytes pass by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporter.artifacts import TensorDrift

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DriftSums"]


@dataclass(slots=True)
class DriftSums:
    """Sums of squares of the difference, of the raw weights and of the average, and the largest difference.

    ``relative`` is ``||average - raw|| / ||raw||``; 0 where both are zero, infinite where only the raw weights are.
    """

    difference: float = 0.0
    raw: float = 0.0
    max_abs: float = 0.0
    average: float = 0.0

    def add(self, average: NDArray[Any], raw: NDArray[Any]) -> None:
        """Add two chunks of the same elements, any floating or complex dtype."""
        import numpy as np

        is_complex = np.iscomplexobj(raw)
        reference: NDArray[Any] = raw.astype(np.complex128 if is_complex else np.float64)
        distance: NDArray[Any] = average.astype(reference.dtype)
        self.average += float(np.einsum("i,i->", distance.conj(), distance).real)
        np.subtract(distance, reference, out=distance)
        self.difference += float(np.einsum("i,i->", distance.conj(), distance).real)  # not BLAS: no threads, the same sum everywhere
        self.raw += float(np.einsum("i,i->", reference.conj(), reference).real)
        magnitude = np.abs(distance, out=None if is_complex else distance)
        self.max_abs = max(self.max_abs, float(magnitude.max())) if not math.isnan(self.max_abs) else self.max_abs

    def merge(self, other: DriftSums) -> None:
        """Add the sums of another tensor."""
        self.difference += other.difference
        self.raw += other.raw
        self.average += other.average
        self.max_abs = max(self.max_abs, other.max_abs)

    @property
    def relative(self) -> float:
        """Relative L2 distance."""
        if self.raw == 0.0:
            return 0.0 if self.difference == 0.0 else math.inf
        return math.sqrt(self.difference / self.raw)

    @property
    def scale(self) -> float:
        """``||average|| / ||raw||``; not a number where the raw weights are zero."""
        return math.sqrt(self.average / self.raw) if self.raw else math.nan

    def of(self, name: str) -> TensorDrift:
        """Return the drift of the tensor ``name``."""
        return TensorDrift(name, self.relative, self.max_abs)
