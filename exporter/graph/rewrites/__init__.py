"""The folds, in the order in which the planner tries them; one file each.

A rewrite says what it ``requires`` of a BatchNorm's surroundings, how to ``apply`` itself to numbers, and what it ``ensures``.
"""

from exporter.graph.rewrites.batch_norm_after_linear import BatchNormAfterLinear
from exporter.graph.rewrites.contract import Constants, Match, Rewrite

__all__ = ["REWRITES", "BatchNormAfterLinear", "Constants", "Match", "Rewrite"]

REWRITES: tuple[Rewrite, ...] = (BatchNormAfterLinear(),)
