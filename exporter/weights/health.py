"""How much of the initial weights an average still holds.

After n updates ``average <- d * average + (1 - d) * weights``, the weights that the average started from still make up
``d_1 * d_2 * ... * d_n`` of it. That share is computed from the schedule of the decay and the number of updates; where one of
them is not known, neither is the share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["COLD_SHARE", "SETTLED_SHARE", "Schedule", "State", "initial_share", "state_of"]

SETTLED_SHARE = 0.01
"""Below this share of initial weights the average is settled."""
COLD_SHARE = 0.10
"""From this share of initial weights on the average is cold: at decay 0.9999, up to 23 024 updates."""

_NEGLIGIBLE = -50.0  # natural logarithm of a share that is shown as 0.0 %

State = Literal["settled", "warming", "cold", "unknown"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How the decay depends on the number of the update, n = 1, 2, ...

    Attributes:
        kind: ``constant``: d; ``first copies``: the first update copies the weights, then d; ``ramp``: d (1 - exp(-n / tau)).
        decay: d, None where the file does not say.
        tau: of the ramp, in updates.
    """

    kind: Literal["constant", "first copies", "ramp", "unknown"] = "unknown"
    decay: float | None = None
    tau: float = 2000.0

    def with_decay(self, decay: float | None) -> Schedule:
        """Return the schedule with ``decay`` where the file does not say one; a decay alone is taken as constant."""
        if decay is None or self.decay is not None:
            return self
        return replace(self, decay=decay, kind="constant" if self.kind == "unknown" else self.kind)

    def __str__(self) -> str:
        """Return the schedule as a formula for the screen."""
        decay = "decay unknown" if self.decay is None else f"{self.decay:.6g}"
        if self.kind == "ramp":
            return f"{decay}·(1-exp(-n/{self.tau:g}))"
        if self.kind == "first copies":
            return f"{decay}, first update copies"
        return f"{decay} constant" if self.kind == "constant" else decay


def initial_share(schedule: Schedule, updates: int | None) -> float | None:
    """Return the share (0 to 1) of the weights at the start that is still in the average, None where it cannot be known.

    - constant: ``d ** n``;
    - first copies: ``d ** (n - 1)``: the weights after the first step take the place of the initial ones;
    - ramp: the product of ``d (1 - exp(-k / tau))`` for k = 1 ... n.
    """
    if updates is None or schedule.kind == "unknown":
        return None
    if updates == 0:
        return 1.0
    if schedule.kind == "first copies" and updates == 1:
        return 1.0
    decay = schedule.decay
    if decay is None or not 0.0 < decay < 1.0:
        return None
    if schedule.kind == "ramp":
        return _ramp_share(decay, schedule.tau, updates)
    return math.exp((updates - (schedule.kind == "first copies")) * math.log(decay))


def state_of(schedule: Schedule, updates: int | None) -> State:
    """Return ``settled``, ``warming``, ``cold`` or ``unknown``.

    A ramp is warming during its first ``tau`` updates: it is never cold, but it still follows the raw weights closely.
    """
    share = initial_share(schedule, updates)
    if share is None or updates is None:
        return "unknown"
    if share >= COLD_SHARE:
        return "cold"
    if share >= SETTLED_SHARE or (schedule.kind == "ramp" and updates < schedule.tau):
        return "warming"
    return "settled"


def _ramp_share(decay: float, tau: float, updates: int) -> float:
    total = 0.0
    for n in range(1, updates + 1):
        total += math.log(decay * -math.expm1(-n / tau))
        if total < _NEGLIGIBLE:
            return 0.0
    return math.exp(total)
