"""What one checkpoint gives for a configuration: its layout, the copy that was chosen, and the plan of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.artifacts import Checkpoint, EmaCandidate, TensorSpec
from exporter.weights.choice import check_health, choose_average, choose_raw, refuse_unreadable
from exporter.weights.debiasing import divisor_of
from exporter.weights.layout import Average, Match
from exporter.weights.naming import name_in_order
from exporter.weights.plan import BakePlan, plan_average, plan_raw
from exporter.weights.reading import candidate_of, match_layout

if TYPE_CHECKING:
    from exporter.config import BakeConfig

__all__ = ["Chosen", "choose"]


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The chosen copy of one checkpoint.

    Attributes:
        average: None where the raw weights were chosen.
        candidate: the average as it is shown.
    """

    match: Match
    plan: BakePlan
    average: Average | None = None
    candidate: EmaCandidate | None = None


def choose(checkpoint: Checkpoint, config: BakeConfig, parameter_order: tuple[TensorSpec, ...] | None) -> Chosen:
    """Return what ``config`` takes from the checkpoint; nothing but counters is read.

    Raises:
        LayoutError: E201 to E225, E245, E246, E255 to E258: the weights asked for are not there, are ambiguous, or do not fit together.
    """
    match = match_layout(checkpoint)
    refuse_unreadable(checkpoint, match)
    if config.choice == "raw":
        return Chosen(match, plan_raw(checkpoint, choose_raw(checkpoint, match), config))
    average = name_in_order(checkpoint, choose_average(checkpoint, match, config), match.raw, parameter_order)
    candidate = candidate_of(average, decay=config.decay, raw=match.raw)
    divisor = divisor_of(checkpoint, average, config)
    check_health(checkpoint, candidate, config)
    return Chosen(match, plan_average(checkpoint, average, match.raw, config, divisor=divisor), average, candidate)
