"""The folds, in the order in which the planner tries them; one file each.

A rewrite says what it ``requires`` of a BatchNorm's surroundings, and how to ``apply`` itself to numbers.
"""

from exporter.graph.rewrites.contract import Constants, Copy, Match, Numbers, Rewrite, Rewritten
from exporter.graph.rewrites.copied_producers import CopiedProducers
from exporter.graph.rewrites.into_batch_norm import IntoBatchNorm
from exporter.graph.rewrites.into_consumers import IntoConsumers
from exporter.graph.rewrites.into_producers import IntoProducers
from exporter.graph.rewrites.linear_numbers import LinearNumbers
from exporter.graph.rewrites.padded_consumers import PaddedConsumers
from exporter.graph.rewrites.parallel_branches import ParallelBranches
from exporter.graph.rewrites.residual_branch import ResidualBranch
from exporter.graph.rewrites.signed_maximum import SignedMaximum
from exporter.graph.rewrites.through_homogeneous import AheadThroughHomogeneous, BackThroughHomogeneous

__all__ = [
    "AHEAD",
    "BACK",
    "CONSERVATIVE",
    "LONE",
    "REWRITES",
    "WITH_WORK",
    "Constants",
    "Copy",
    "LinearNumbers",
    "Match",
    "Numbers",
    "Rewrite",
    "Rewritten",
]

BACK: Rewrite = IntoProducers()
AHEAD: Rewrite = IntoConsumers()
"""The two that say what stands on either side of a BatchNorm that is kept."""

_INTO_BATCH_NORM: Rewrite = IntoBatchNorm()

REWRITES: tuple[Rewrite, ...] = (
    BACK,
    BackThroughHomogeneous(),
    ResidualBranch(),
    ParallelBranches(),
    AHEAD,
    AheadThroughHomogeneous(),
    SignedMaximum(),
    _INTO_BATCH_NORM,
)
"""Backwards first, since it costs nothing; branches next, since they wait for the folds beside them; what stays takes what is left."""

WITH_WORK: tuple[Rewrite, ...] = (PaddedConsumers(), CopiedProducers())
"""What adds work: tried where nothing of the others is left to do, and taken where it pays."""

LONE: tuple[Rewrite, ...] = (BACK, AHEAD, _INTO_BATCH_NORM)
"""What is tried for products and sums that stand alone: it has to leave less work whatever their numbers are."""

CONSERVATIVE: tuple[Rewrite, ...] = (BACK,)
"""What the level ``conservative`` tries."""
