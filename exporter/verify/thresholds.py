"""Up to which magnitude a tensor is kept in 8 bits: from the histogram of its magnitudes on the samples.

minmax       the largest magnitude of all: nothing is cut off, and one outlier costs every other value its digits
percentile   the magnitude that so many of a hundred values do not exceed
entropy      the one with which the distribution of the values in 8 bits is nearest to theirs, by the Kullback-Leibler divergence

The last one is the calibration of TensorRT's own calibrator (Migacz, "8-bit inference with TensorRT", 2017): what lies beyond the threshold counts
for the last bin, zeros count for nothing, and the bins that share a level share their counts evenly.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "Calibration", "clipped_share", "threshold_of"]

Calibration: TypeAlias = Literal["entropy", "percentile", "minmax"]

BINS = 2048
"""Of the histogram, from 0 to the largest magnitude."""
_FEWEST_BINS = 128
_STEP = 8
"""Bins between one threshold that is tried and the next."""


def threshold_of(counts: NDArray[np.int64], largest: float, method: Calibration, *, precision: str, percentile: float) -> float:
    """Return the largest magnitude that is kept.

    Args:
        counts: of magnitudes in ``BINS`` equal bins from 0 to ``largest``.
        largest: magnitude of all values.
        method: see above.
        precision: ``int8`` or ``fp8``, whose levels ``entropy`` looks at.
        percentile: for the method of that name, 100 at most.
    """
    if method == "minmax" or not counts.any():
        return largest
    if method == "percentile":
        bins = int(np.argmax(np.cumsum(counts) >= counts.sum() * (percentile / 100.0))) + 1
        return float(largest * bins / BINS)
    levels = _levels(precision)
    tried = [*range(_FEWEST_BINS, BINS, _STEP), BINS]
    divergences = [_divergence(counts.astype(np.float64), kept, levels) for kept in tried]
    smallest = int(len(tried) - 1 - np.argmin(divergences[::-1]))  # of equal ones the one that keeps most
    return float(largest * tried[smallest] / BINS)


def clipped_share(counts: NDArray[np.int64], largest: float, threshold: float) -> float:
    """Return the share of the values beyond the threshold, to the width of a bin."""
    kept = round(threshold / largest * BINS) if largest else BINS
    return float(counts[kept:].sum() / counts.sum()) if counts.any() else 0.0


def _levels(precision: str) -> NDArray[np.float64]:
    """Return the magnitudes that the precision can tell apart, the largest as 1."""
    if precision == "int8":
        return np.arange(128) / 127.0
    codes = np.arange(0x7F, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    return np.asarray(codes / codes.max(), np.float64)


def _divergence(counts: NDArray[np.float64], kept: int, levels: NDArray[np.float64]) -> float:
    """Return the divergence of what 8 bits make of ``counts`` from ``counts``, where the first ``kept`` bins are in range."""
    inside = counts[:kept].copy()
    inside[0] = 0.0
    total = inside.sum() + counts[kept:].sum()
    if not inside.any():
        return np.inf
    places = (np.arange(kept) + 0.5) / kept
    level = np.searchsorted((levels[1:] + levels[:-1]) / 2, places)
    filled = inside > 0
    sums = np.bincount(level, weights=inside, minlength=len(levels))
    sharing = np.bincount(level, weights=filled, minlength=len(levels))
    after = np.where(filled, (sums / np.maximum(sharing, 1))[level], 0.0) / inside.sum()
    before = inside / total
    before[-1] += counts[kept:].sum() / total
    smallest = 1e-12
    present = before > 0
    return float((before[present] * np.log(before[present] / np.maximum(after[present], smallest))).sum())
