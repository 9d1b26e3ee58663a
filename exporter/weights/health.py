"""How much of the initial weights an average still holds, and how far back it looks.

After n updates ``average <- d_n * average + (1 - d_n) * weights``, the weights that the average started from still make up
``d_1 * d_2 * ... * d_n`` of it. That share, and the mean age of what is in the average, are computed from the schedule of the
decay and the number of updates; where one of them is not known, neither are they.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

__all__ = [
    "COLD_SHARE",
    "SETTLED_SHARE",
    "Schedule",
    "State",
    "decay_at",
    "decay_of_half_life",
    "effective_window",
    "initial_share",
    "state_of",
]

SETTLED_SHARE = 0.01
"""Below this share of initial weights the average is settled."""
COLD_SHARE = 0.10
"""From this share of initial weights on the average is cold: at decay 0.9999, up to 23 024 updates."""
MIN_SNAPSHOTS = 2
"""A mean of fewer snapshots averages nothing."""

_LEFT_OUT = -27.6  # of a share that the window leaves out
_NEGLIGIBLE = -50.0  # natural logarithm of a share that is shown as 0.0 %
_MAX_STEPS = 300_000  # a file cannot make this take longer than a fraction of a second

State = Literal["settled", "warming", "cold", "unknown"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How the decay depends on the number of the update, n = 1, 2, ...

    Attributes:
        kind: with e = n - start,

            - ``constant``: d;
            - ``first copies``: the first update copies the weights, then d (torch's AveragedModel);
            - ``ramp``: d (1 - exp(-n / tau)) (YOLOv5, ultralytics, RT-DETR);
            - ``tensorflow``: min(d, (1 + e) / (10 + e)), at least ``minimum`` (TensorFlow, torch_ema, LitEma, diffusers);
            - ``power``: 1 - (1 + e / inv_gamma) ^ -power, between ``minimum`` and d (timm, ema-pytorch, k-diffusion, diffusers);
            - ``mean``: (n - 1) / n, so that all snapshots count alike (SWA);
            - ``unknown``.
        decay: d, None where the file does not say.
        tau: of the ramp, in updates.
        start: for ``tensorflow`` and ``power``: updates up to this one copy the weights.
    """

    kind: Literal["constant", "first copies", "ramp", "tensorflow", "power", "mean", "unknown"] = "unknown"
    decay: float | None = None
    tau: float = 2000.0
    inv_gamma: float = 1.0
    power: float = 2 / 3
    minimum: float = 0.0
    start: int = 0

    def with_decay(self, decay: float | None) -> Schedule:
        """Return the schedule with ``decay`` where the file does not say one; a decay alone is taken as constant."""
        if decay is None or self.decay is not None or self.kind == "mean":
            return self
        return replace(self, decay=decay, kind="constant" if self.kind == "unknown" else self.kind)

    def __str__(self) -> str:
        """Return the schedule as a formula for the screen."""
        if self.kind == "mean":
            return "mean of snapshots"
        decay = "decay unknown" if self.decay is None else f"{self.decay:.6g}"
        step = f"(n-{self.start})" if self.start else "n"
        forms = {
            "ramp": f"{decay}·(1-exp(-n/{self.tau:g}))",
            "first copies": f"{decay}, first update copies",
            "tensorflow": f"min({decay}, (1+{step})/(10+{step}))",
            "power": f"min({decay}, 1-(1+{step}/{self.inv_gamma:g})^-{self.power:.4g})",
            "constant": f"{decay} constant",
        }
        return forms.get(self.kind, decay)


def decay_of_half_life(half_life: float, *, interval: float = 1.0) -> float:
    """Return the decay of one update for an average that forgets half in ``half_life``, both in the unit of ``interval``.

    composer counts batches, with ``interval`` batches between updates; EDM counts images, with the batch size as the interval.
    """
    return math.exp2(-interval / max(half_life, 1e-8))


def decay_at(schedule: Schedule, n: int) -> float | None:
    """Return the decay of update ``n``; TensorFlow counts the first one as 0, the other libraries as 1. None where it is not known."""
    if schedule.kind == "mean":
        return (n - 1) / n if n > 0 else 0.0
    decay = schedule.decay
    if schedule.kind == "unknown" or decay is None or not 0.0 < decay < 1.0:
        return None
    if schedule.kind == "ramp":
        return decay * -math.expm1(-n / schedule.tau) if schedule.tau > 0 else decay
    if schedule.kind == "first copies":
        return decay if n > 1 else 0.0
    return decay if schedule.kind == "constant" else _warm_up(schedule, decay, n - schedule.start)


def initial_share(schedule: Schedule, updates: int | None) -> float | None:
    """Return the share (0 to 1) of the weights at the start that is still in the average, None where it cannot be known.

    An update that copies the weights takes them for the new start: with ``first copies`` the share is ``d ** (n - 1)``, and of
    the mean of n snapshots the first one is ``1 / n``.
    """
    if updates is None or schedule.kind == "unknown":
        return None
    if updates == 0 or _copies(schedule, updates):
        return 1.0
    decay = schedule.decay
    if schedule.kind == "mean":
        return 1 / updates
    if decay is None or not 0.0 < decay < 1.0:
        return None
    if schedule.kind in {"constant", "first copies"}:
        return math.exp((updates - (schedule.kind == "first copies")) * math.log(decay))
    return _product(schedule, decay, updates)


@lru_cache(64)
def _product(schedule: Schedule, decay: float, updates: int) -> float | None:
    """Return the product of the decays of a schedule that grows to ``decay``, None where that would take too long."""
    total = 0.0
    for n, now in _decays_from(schedule, _first(schedule), updates):
        if now is None:
            return None
        if now >= decay * (1 - 1e-12):  # constant from here on
            return math.exp(total + (updates - n + 1) * math.log(decay))
        total += math.log(now) if now > 0 else 0.0
        if total < _NEGLIGIBLE:
            return 0.0
    return math.exp(total) if updates - _first(schedule) < _MAX_STEPS else None


@lru_cache(64)
def effective_window(schedule: Schedule, updates: int | None) -> float | None:
    """Return the mean age, in updates, of the weights in the average, the newest counted as 1; None where it cannot be known.

    A settled average of constant decay d looks back ``1 / (1 - d)`` updates; the initial weights are as old as the average.
    """
    if not updates or schedule.kind == "unknown":
        return None
    if schedule.kind == "mean":
        return (updates + 1) / 2
    latest = decay_at(schedule, updates)
    if latest is None or schedule.decay is None:
        return None
    reach = min(updates, int(-_NEGLIGIBLE / (1 - latest)) + 1)
    earlier = decay_at(schedule, updates - reach + 1)
    if schedule.kind == "constant" or (earlier is not None and earlier >= latest * (1 - 1e-12)):
        return -math.expm1(updates * math.log(latest)) / (1 - latest) if latest else 1.0
    if min(reach, int(-_LEFT_OUT / (1 - latest)) + 1) > _MAX_STEPS:
        return None
    age, product = 0.0, 1.0
    for n in range(updates, updates - reach, -1):
        age += product
        product *= decay_at(schedule, n) or 0.0
        if product < math.exp(_LEFT_OUT):
            break
    return age


def state_of(schedule: Schedule, updates: int | None) -> State:
    """Return ``settled``, ``warming``, ``cold`` or ``unknown``.

    A schedule that begins with small decays soon holds nothing of the initial weights, but still follows the raw weights closely: it
    is warming during the first ``tau`` updates of a ramp, and as long as it looks back less than half as far as it will. A mean
    is cold without a snapshot, warming with one, and settled with two or more.
    """
    share = initial_share(schedule, updates)
    if share is None or updates is None:
        return "unknown"
    if schedule.kind == "mean":
        return "cold" if updates == 0 else "warming" if updates < MIN_SNAPSHOTS else "settled"
    if share >= COLD_SHARE:
        return "cold"
    if share >= SETTLED_SHARE or (schedule.kind == "ramp" and updates < schedule.tau):
        return "warming"
    now = decay_at(schedule, updates)
    if schedule.kind in {"tensorflow", "power"} and now is not None and schedule.decay is not None and 1 - now > 2 * (1 - schedule.decay):
        return "warming"
    return "settled"


def _warm_up(schedule: Schedule, decay: float, step: int) -> float | None:
    """Return the decay of ``tensorflow`` or ``power`` at ``step``."""
    if schedule.start and step <= 0:
        return 0.0
    if schedule.kind == "tensorflow":
        return min(max((1 + step) / (10 + step), schedule.minimum), decay)
    if schedule.inv_gamma <= 0 or schedule.power <= 0:
        return None
    return min(max(1 - math.pow(1 + max(step, 0) / schedule.inv_gamma, -schedule.power), schedule.minimum), decay)


def _first(schedule: Schedule) -> int:
    """Return the first update that averages."""
    return schedule.start + 1 if schedule.kind in {"tensorflow", "power"} else 1


def _copies(schedule: Schedule, updates: int) -> bool:
    """Return whether the last update took the weights as they were."""
    if schedule.kind in {"tensorflow", "power"}:
        return updates <= schedule.start
    return schedule.kind == "first copies" and updates == 1


def _decays_from(schedule: Schedule, first: int, last: int) -> Iterator[tuple[int, float | None]]:
    for n in range(first, min(last, first + _MAX_STEPS - 1) + 1):
        yield n, decay_at(schedule, n)
