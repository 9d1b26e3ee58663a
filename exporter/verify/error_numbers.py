"""Sizes and distances of samples: norms that leave NaN and infinity out, quotients that know what 0 / 0 is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from exporter.runners.base import Array
from exporter.verify.output_values import is_exact, values_by_sample

__all__ = ["HISTOGRAM_EDGES", "OutputScale", "Values", "finite_difference", "histogram", "measure_scale", "ratio", "relative_l2"]

Values: TypeAlias = NDArray[np.float64]

HISTOGRAM_EDGES: tuple[float, ...] = tuple(-18.0 + 0.5 * step for step in range(39))
"""Bins of ``log10(|c - r| / A)``; equal elements count in the first bin, whatever lies outside in the outermost ones."""


@dataclass(frozen=True, slots=True)
class OutputScale:
    """An output's typical size and the unfused model's typical error, over the recorded samples (else the random ones).

    Attributes:
        rms: root mean square of the finite reference values.
        own_error: root mean square over the samples of the unfused model's relative L2 error.
        own_max_error: the largest relative L2 error of a sample.
        own_max_abs: the largest absolute error.
    """

    rms: float = 0.0
    own_error: float = 0.0
    own_max_error: float = 0.0
    own_max_abs: float = 0.0


def measure_scale(references: Sequence[Array], owns: Sequence[Array], batch: int) -> OutputScale:
    """Return the scale of an output over one feed; that of integers and booleans is zero."""
    if not references or is_exact(references[0]):
        return OutputScale()
    blocks = list(zip(values_by_sample(references, batch), values_by_sample(owns, batch), strict=True))
    rms = _rms([reference for reference, _ in blocks])
    errors = np.concatenate([relative_l2(reference, own, rms) for reference, own in blocks])
    largest = max((float(finite_difference(reference, own).max(initial=0.0)) for reference, own in blocks), default=0.0)
    return OutputScale(rms, _root_mean_square(errors), float(errors.max(initial=0.0)), largest)


def histogram(differences: Values, scale: float) -> tuple[int, ...]:
    """Return the counts of ``log10(differences / scale)`` in the bins of ``HISTOGRAM_EDGES``."""
    with np.errstate(divide="ignore"):
        levels = np.log10(differences / scale) if scale else np.where(differences > 0, np.inf, -np.inf)
    counts, _ = np.histogram(np.clip(levels, HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1]), bins=np.asarray(HISTOGRAM_EDGES))
    return tuple(int(count) for count in counts)


def finite_difference(r: Values, c: Values) -> Values:
    """Return ``|c - r|`` where both are finite, else 0."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference: Values = np.abs(c - r)
    return np.where(np.isfinite(r) & np.isfinite(c), difference, 0.0)


def relative_l2(r: Values, c: Values, scale: float) -> Values:
    """Return ``||c_i - r_i|| / max(||r_i||, sqrt(n) scale)`` per sample over the finite elements; 0 / 0 is 0."""
    size = np.where(np.isfinite(r), np.abs(r), 0.0)
    norms = np.sqrt((size * size).sum(1))
    difference = finite_difference(r, c)
    return ratio(np.sqrt((difference * difference).sum(1)), np.maximum(norms, math.sqrt(r.shape[1]) * scale))


def ratio(numerator: Values, denominator: Values) -> Values:
    """Return the quotient where 0 / 0 is 0 and x / 0 is infinite."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient: Values = numerator / denominator
    return np.where(numerator == 0.0, 0.0, quotient)


def _rms(blocks: list[Values]) -> float:
    finite = [block[np.isfinite(block)] for block in blocks]
    count = sum(values.size for values in finite)
    return math.sqrt(sum(float((values * values).sum()) for values in finite) / count) if count else 0.0


def _root_mean_square(values: Values) -> float:
    return math.sqrt(float((values * values).mean())) if values.size else 0.0
