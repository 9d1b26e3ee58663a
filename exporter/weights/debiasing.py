"""Averages that began with zeros: how much of them is still missing, and what they are divided by.

After n updates ``average <- d_n * average + (1 - d_n) * weights`` from zero, the average is short of the product of the decays, the
share that the zeros still have in it. Divided by one minus that share it is a mean of the weights alone, as ``optax.ema`` reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.artifacts import Checkpoint
from exporter.errors import LayoutError
from exporter.weights.health import SETTLED_SHARE, State, effective_window, initial_share

if TYPE_CHECKING:
    from exporter.config import BakeConfig
    from exporter.weights.health import Schedule
    from exporter.weights.layout import Average

__all__ = ["divisor_of", "health_without_zeros", "remark_on_zeros"]


def divisor_of(checkpoint: Checkpoint, average: Average, config: BakeConfig) -> float:
    """Return what every averaged tensor is to be divided by: 1 unless the average began with zeros.

    Raises:
        LayoutError: schedule or updates are not known (E245), or it holds nothing but the zeros (E246).
    """
    if not average.zero_initialised:
        return 1.0
    schedule = average.schedule.with_decay(config.decay)
    share = initial_share(schedule, average.updates)
    facts: dict[str, object] = {"file": checkpoint.path, "at": average.weights.at or "the top of the file"}
    if share is None:
        facts |= {"found": f"decay {schedule}, {_updates(average)}", "expected": "both: the average is to be divided by 1 - (product of decays)"}
        help_text = "--decay with what training used" if average.updates is not None else "the file does not count updates: --weights raw"
        raise LayoutError("E245", "the average began with zeros, and how much of them is left in it is not known", facts=facts, help=help_text)
    if share >= 1.0:
        facts |= {"found": _updates(average), "expected": "at least one"}
        raise LayoutError("E246", "the average began with zeros and was never updated", facts=facts, help="take the raw weights: --weights raw")
    return 1.0 - share


def health_without_zeros(schedule: Schedule, updates: int | None) -> tuple[float | None, State, float | None]:
    """Return share of initial weights, state and window of an average that is read without the zeros it began with.

    No initial weights are ever in it. As long as the zeros would make up a share, it looks back less far than it will, and is warming.
    """
    share = initial_share(schedule, updates)
    if share is None or updates is None:
        return None, "unknown", None
    if share >= 1.0:
        return 1.0, "cold", None
    window = effective_window(schedule, updates)
    mean_age = None if window is None else (window - share * updates) / (1.0 - share)
    return 0.0, "warming" if share >= SETTLED_SHARE else "settled", mean_age


def remark_on_zeros(schedule: Schedule, updates: int | None) -> str:
    """Return what a reader should know of an average that began with zeros."""
    share = initial_share(schedule, updates)
    if share is None:
        return "began with zeros: it is divided by 1 - (product of decays), for which " + (
            "--decay is needed" if updates is not None else "the file lacks the number of updates"
        )
    return "began with zeros and was never updated" if share >= 1.0 else f"began with zeros: divided by {1.0 - share:.6g}"


def _updates(average: Average) -> str:
    return "updates unknown" if average.updates is None else f"{average.updates} updates"
