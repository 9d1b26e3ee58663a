"""BatchNorm without a shift through a function that a positive factor passes: ReLU, LeakyReLU, PReLU, the absolute value.

    f(s z) = s f(z)   where no s is negative, so   s f(W * x + b) = f((s W) * x + s b)   and   W * f(s x) = (W s) * f(x)

The algebra on either side is that of ``into_producers.py`` and ``into_consumers.py``; with a shift or a negative scale nothing passes.
"""

from __future__ import annotations

from exporter.artifacts import Refusal, RefusalReason
from exporter.graph.abstract import AbstractGraph, Operator
from exporter.graph.rewrites.ahead import PASSES_AHEAD
from exporter.graph.rewrites.back import PASSES_BACK
from exporter.graph.rewrites.contract import Match
from exporter.graph.rewrites.into_consumers import IntoConsumers
from exporter.graph.rewrites.into_producers import IntoProducers
from exporter.graph.through import PositiveHomogeneous

__all__ = ["AheadThroughHomogeneous", "BackThroughHomogeneous"]


class BackThroughHomogeneous(IntoProducers):
    """Fold ``s z`` into what makes ``z``, through a ReLU or its like."""

    passes = (*PASSES_BACK, PositiveHomogeneous)

    def requires(self, graph: AbstractGraph, affine: Operator) -> Match | Refusal:
        """Return the ways back to the products, or the first reason against the fold."""
        return _bent(super().requires(graph, affine))


class AheadThroughHomogeneous(IntoConsumers):
    """Fold ``s x`` into what reads it, through a ReLU or its like."""

    passes = (*PASSES_AHEAD, PositiveHomogeneous)

    def requires(self, graph: AbstractGraph, affine: Operator) -> Match | Refusal:
        """Return the ways ahead to the products, or the first reason against the fold."""
        return _bent(super().requires(graph, affine))


def _bent(match: Match | Refusal) -> Match | Refusal:
    """Refuse where no way leads through such a function: then another rewrite has seen it all."""
    if isinstance(match, Refusal) or (isinstance(match.route, tuple) and any(_bends(way.steps) for way in match.route)):
        return match
    return Refusal(match.affine.module, RefusalReason.NOT_LINEAR, (), "no ReLU or its like is beside it")


def _bends(steps: tuple[Operator | tuple[Operator, int], ...]) -> bool:
    operators = (step[0] if isinstance(step, tuple) else step for step in steps)
    return any(isinstance(operator.role, PositiveHomogeneous) for operator in operators)
