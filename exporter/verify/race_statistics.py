"""Statistics of a race, free of clocks: the interval of the ratio, the decision, percentiles.

The unit is the round: ``d = log(median of the candidate's block / median of the reference's block)``. Calls within a block are
autocorrelated, so nothing is inferred from single calls. The interval is Student's t on the 20 % trimmed mean of the rounds
with the winsorised variance (Tukey and McLaughlin 1963, Yuen 1974): with g = floor(0.2 n) rounds cut off on either side and
h = n - 2 g left,

    estimate +- t(h - 1) * s_w * sqrt(n - 1) / sqrt(h (h - 1))

so that a few rounds in which something else took the machine widen it little. Far out in the tail this approximation errs up to
1.8 times as often as it says (20 normal rounds, 1 in 3000), so the quantile is taken at half the rate: ``docs/verdicts.md``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.artifacts import Outcome

__all__ = ["LOOKS", "RatioInterval", "bootstrap_interval", "decide", "percentiles_ms", "trimmed_interval"]

LOOKS = 3
"""A race is looked at after R, 2 R and 4 R rounds; each look gets a third of the false-alarm rate."""
TRIM = 0.2
TAIL_SAFETY = 2.0
"""By how much the rate of the t quantile is lowered, so that the bound errs no more often than stated."""
BOOTSTRAP_RESAMPLES = 20_000
P99_MIN_SAMPLES = 662
"""Fewer samples leave the 99th percentile to chance (the floor of MLPerf's single-stream scenario)."""

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RatioInterval:
    """Logarithm of candidate / reference: one-sided bounds on either side of the estimate."""

    low: float
    estimate: float
    high: float


def trimmed_interval(log_ratios: Values, alpha: float) -> RatioInterval:
    """Return the bounds that are wrong with probability ``alpha`` each, or less.

    Args:
        log_ratios: one per round, at least 5.
        alpha: of one bound.
    """
    from scipy.special import stdtrit

    ordered = np.sort(np.asarray(log_ratios, np.float64))
    count = len(ordered)
    cut = int(TRIM * count)
    kept = count - 2 * cut
    estimate = float(ordered[cut : count - cut].mean())
    winsorised = np.clip(ordered, ordered[cut], ordered[count - cut - 1])
    error = float(winsorised.std(ddof=1)) * math.sqrt((count - 1) / (kept * (kept - 1)))
    reach = float(stdtrit(kept - 1, 1.0 - alpha / TAIL_SAFETY)) * error
    return RatioInterval(estimate - reach, estimate, estimate + reach)


def bootstrap_interval(log_ratios: Values, alpha: float, rng: np.random.Generator) -> RatioInterval:
    """Return the percentile interval of the trimmed mean over resampled rounds: a check, narrow for few rounds."""
    values = np.asarray(log_ratios, np.float64)
    count = len(values)
    cut = int(TRIM * count)
    resampled = np.sort(values[rng.integers(0, count, (BOOTSTRAP_RESAMPLES, count))], axis=1)
    means = resampled[:, cut : count - cut].mean(1)
    low, high = np.quantile(means, [alpha, 1.0 - alpha])
    return RatioInterval(float(low), float(np.sort(values)[cut : count - cut].mean()), float(high))


def decide(interval: RatioInterval, limit: float) -> Outcome:
    """Return PASS where the candidate is within ``limit`` (a log ratio), FAIL where it is not, INCONCLUSIVE in between."""
    if interval.low > limit:
        return Outcome.FAIL
    return Outcome.PASS if interval.high <= limit else Outcome.INCONCLUSIVE


def percentiles_ms(samples_ms: Values) -> dict[str, float]:
    """Return percentiles of pooled raw samples (nearest rank); ``p99`` only from 662 samples on."""
    wanted = [50, 90, *([99] if len(samples_ms) >= P99_MIN_SAMPLES else [])]
    found = np.percentile(samples_ms, wanted, method="inverted_cdf")
    return {f"p{percent}": float(value) for percent, value in zip(wanted, found, strict=True)}
