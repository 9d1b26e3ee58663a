"""BatchNorm into the products behind it, directly or through operators that the map passes.

    W * (s x + t) + b = (W s) * x + (b + W * t)

    weight   W'[o, c, ...] = W[o, c, ...] s[c]                        c along the input channels, within the group of o
    bias     b'[o] = b[o] + sum over c and all taps of W[o, c, ...] t[c]

Every reader of the BatchNorm has to take it; then it disappears. The bias is exact where every output sees all taps of the weight:
without padding, or with padding that copies values (that padding is an operator of its own). A convolution that pads zeros sees
``s 0 + t`` nowhere: its border would miss ``t``, so it takes the map only if ``t`` is zero. A transposed convolution spreads its taps
over different outputs, so it does with one tap. The rest is left to ``padded_consumers.py``, at a price.
"""

from __future__ import annotations

import numpy as np

from exporter.artifacts import Refusal, RefusalReason
from exporter.graph.abstract import AbstractGraph, ConstantAffine, Operator
from exporter.graph.algebra import shift_seen
from exporter.graph.rewrites.ahead import PASSES_AHEAD, WayAhead, carried_ahead, ways_ahead
from exporter.graph.rewrites.contract import Match, Numbers, Rewritten, affine_numbers, linear_of
from exporter.graph.rewrites.linear_numbers import LinearNumbers
from exporter.graph.rewrites.objections import affine_of, objection_to_statistics
from exporter.graph.through import Carried

__all__ = ["IntoConsumers", "changed_ahead", "numbers_ahead", "pattern_ahead"]


class IntoConsumers:
    """Fold ``s x + t`` into the weights and biases of all linear operators that read it."""

    looks_ahead = True
    passes = PASSES_AHEAD

    def requires(self, graph: AbstractGraph, affine: Operator) -> Match | Refusal:
        """Return the ways ahead to the products, or the first reason against the fold."""
        refusal = objection_to_statistics(graph, affine)
        if refusal is not None:
            return refusal
        ways = ways_ahead(graph, affine, passes=self.passes)
        return ways if isinstance(ways, Refusal) else Match(affine, tuple(way.product for way in ways), ways)

    def apply(self, match: Match, numbers: Numbers) -> Rewritten | Refusal:
        """Return ``W'`` and ``b'`` of every product."""
        s, t = affine_numbers(match.affine, numbers)
        ways = match.route
        if not isinstance(ways, tuple):
            raise TypeError("this match comes from another rewrite")
        new = numbers_ahead(match.affine, ways, Carried(affine_of(match.affine).axis, s, t), numbers)
        if isinstance(new, Refusal):
            return new
        bypass = (match.affine.name, affine_of(match.affine).data)
        return Rewritten(new, (bypass,), pattern_ahead(match.affine, ways), float(np.abs(s).max(initial=0.0)), "ahead", changed_ahead(ways))


def numbers_ahead(affine: Operator, ways: tuple[WayAhead, ...], given: Carried, numbers: Numbers) -> dict[str, LinearNumbers] | Refusal:
    """Return the numbers of the products with the map ``given``, that of the BatchNorm's place, taken in."""
    new: dict[str, LinearNumbers] = {}
    for way in ways:
        carried = carried_ahead(affine, way, given)
        if isinstance(carried, Refusal):
            return carried
        product, role, have = way.product, linear_of(way.product), numbers.of(way.product)
        seen = None
        if np.any(carried.t != 0.0):
            if not role.sees_all:
                detail = f"{product.label} pads with zeros, or spreads its taps: some of its outputs would miss the shift"
                return Refusal(affine.module, RefusalReason.PADDED, (product.label,), detail)
            seen = shift_seen(have.weight, carried.t, axis=role.weight_input_axis, groups=role.groups, is_transposed=role.is_transposed)
        new[product.name] = have.ahead(role, carried.s).added(bias=seen)
    return new


def changed_ahead(ways: tuple[WayAhead, ...]) -> tuple[str, ...]:
    """Return the modules whose outputs lack the map from now on."""
    return tuple(dict.fromkeys(operator.module for way in ways for operator in way.steps))


def pattern_ahead(affine: Operator, ways: tuple[WayAhead, ...]) -> str:
    """Return what was folded into what, in short."""
    role = affine_of(affine)
    name = affine.kind.lower() if isinstance(role, ConstantAffine) and role.lone is not None else "bn"
    return "+".join((name, *dict.fromkeys(operator.kind for way in ways for operator in way.steps), ways[0].product.kind))
