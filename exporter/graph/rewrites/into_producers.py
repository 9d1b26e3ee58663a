"""BatchNorm into the products before it, directly or through operators that the map passes.

    BN(W * x + b) = s (W * x + b) + t = (s W) * x + (s b + t)

    weight   W'[o, ...] = s[o] W[o, ...]      o along the output channels, whatever the groups, strides, dilations, padding
    bias     b'[o] = s[o] b[o] + t[o]         b = 0 where there is none; then a bias is created

Between the product and the BatchNorm may stand operators that ``s z + t`` passes (``exporter.graph.through``): then the product
takes the map as it reads in front of them. A concatenation hands each of its inputs the part of its channels, a sum scales all of
its inputs and shifts the first; all of them have to be products, since a map that is taken half is none.

It is exact if nothing else reads what is changed (a reader would see scaled numbers), and none of it is an output of the graph.
A slice may stand beside slices of other channels: they are left as they are.

A second BatchNorm behind the first is the same rewrite once more, since by then the first is part of ``W`` and ``b``.
"""

from __future__ import annotations

import numpy as np

from exporter.artifacts import Refusal, RefusalReason
from exporter.graph.abstract import AbstractGraph, BatchNorm, ConstantAffine, Operator
from exporter.graph.rewrites.back import PASSES_BACK, WayBack, carried_back, ways_back
from exporter.graph.rewrites.contract import Match, Numbers, Rewritten, affine_numbers, linear_of
from exporter.graph.rewrites.linear_numbers import LinearNumbers
from exporter.graph.rewrites.objections import affine_of, objection_to_statistics
from exporter.graph.through import Carried

__all__ = ["IntoProducers", "changed_back", "name_of_affine", "numbers_behind", "pattern_back"]


class IntoProducers:
    """Fold ``s z + t`` into the weights and biases of the linear operators that make ``z``."""

    looks_ahead = False
    passes = PASSES_BACK

    def requires(self, graph: AbstractGraph, affine: Operator) -> Match | Refusal:
        """Return the ways back to the products, or the first reason against the fold."""
        refusal = objection_to_statistics(graph, affine)
        if refusal is not None:
            return refusal
        ways = ways_back(graph, affine, passes=self.passes)
        return ways if isinstance(ways, Refusal) else Match(affine, tuple(way.product for way in ways), ways)

    def apply(self, match: Match, numbers: Numbers) -> Rewritten | Refusal:
        """Return ``W'`` and ``b'`` of every product."""
        s, t = affine_numbers(match.affine, numbers)
        ways = match.route
        if not isinstance(ways, tuple):
            raise TypeError("this match comes from another rewrite")
        new = numbers_behind(match.affine, ways, Carried(affine_of(match.affine).axis, s, t), numbers)
        if isinstance(new, Refusal):
            return new
        bypass = (match.affine.name, affine_of(match.affine).data)
        return Rewritten(new, (bypass,), pattern_back(match.affine, ways), float(np.abs(s).max(initial=0.0)), "back", changed_back(ways))


def numbers_behind(affine: Operator, ways: tuple[WayBack, ...], given: Carried, numbers: Numbers) -> dict[str, LinearNumbers] | Refusal:
    """Return the numbers of the products with the map ``given``, that of the BatchNorm's place, taken in."""
    new: dict[str, LinearNumbers] = {}
    for way in ways:
        carried = carried_back(affine, way, given)
        if isinstance(carried, Refusal):
            return carried
        product, role = way.product, linear_of(way.product)
        if carried.axis != role.output_axis:
            before = product.label
            detail = f"channels of {before} lie on axis {role.output_axis}, the BatchNorm acts on axis {carried.axis}"
            return Refusal(affine.module, RefusalReason.WRONG_AXIS, (before,), detail)
        is_shifted = bool(np.any(carried.t != 0.0)) or (not way.steps and shifts(affine))
        new[product.name] = numbers.of(product).behind(role, carried.s, carried.t, with_bias=is_shifted)
    return new


def changed_back(ways: tuple[WayBack, ...]) -> tuple[str, ...]:
    """Return the modules whose outputs are scaled from now on."""
    steps = [operator for way in ways for operator, _ in way.steps]
    products = [way.product for way in ways]
    return tuple(dict.fromkeys(operator.module for operator in (*steps, *products))) if steps else ()


def shifts(affine: Operator) -> bool:
    """Return whether there is a shift in an affine, whatever its numbers: a product alone has none, and makes no bias."""
    role = affine_of(affine)
    return not isinstance(role, ConstantAffine) or role.shifts


def name_of_affine(affine: Operator) -> str:
    """Return what a pattern calls it."""
    role = affine_of(affine)
    if isinstance(role, BatchNorm) or role.is_batch_norm:
        return "bn"
    return "affine" if role.lone is None else affine.kind.lower()


def pattern_back(affine: Operator, ways: tuple[WayBack, ...]) -> str:
    """Return what was folded into what, in short."""
    between = dict.fromkeys(operator.kind.rstrip("_") for way in ways for operator, _ in reversed(way.steps))
    return "+".join((ways[0].product.kind, *between, name_of_affine(affine)))
