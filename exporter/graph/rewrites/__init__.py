"""The folds, in the order in which the planner tries them; one file each.

A rewrite says what it ``requires`` of a BatchNorm's surroundings, and how to ``apply`` itself to numbers.
"""

from exporter.graph.rewrites.contract import Constants, Copy, Match, Numbers, Rewrite, Rewritten
from exporter.graph.rewrites.into_consumers import IntoConsumers
from exporter.graph.rewrites.into_producers import IntoProducers
from exporter.graph.rewrites.linear_numbers import LinearNumbers
from exporter.graph.rewrites.parallel_branches import ParallelBranches
from exporter.graph.rewrites.residual_branch import ResidualBranch

__all__ = [
    "REWRITES",
    "Constants",
    "Copy",
    "IntoConsumers",
    "IntoProducers",
    "LinearNumbers",
    "Match",
    "Numbers",
    "ParallelBranches",
    "ResidualBranch",
    "Rewrite",
    "Rewritten",
]

REWRITES: tuple[Rewrite, ...] = (IntoProducers(), ResidualBranch(), ParallelBranches(), IntoConsumers())
"""Backwards first, since it costs nothing; branches next, since they wait for the folds beside them."""
