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

from dataclasses import dataclass

import numpy as np

from exporter.artifacts import Refusal, RefusalReason
from exporter.graph.abstract import AbstractGraph, BatchNorm, ConstantAffine, Linear, Operator
from exporter.graph.rewrites.contract import Match, Numbers, Rewritten, affine_numbers, linear_of
from exporter.graph.rewrites.linear_numbers import LinearNumbers
from exporter.graph.rewrites.objections import affine_of, objection_to_numbers, objection_to_statistics
from exporter.graph.through import Blocked, Carried, Join, KeepsChannels, Maximum, Permutation, PixelShuffle, Reshape, Sum, Take

__all__ = ["IntoProducers"]


@dataclass(frozen=True, slots=True)
class _Way:
    """The operators between the BatchNorm and one product, from the BatchNorm on, each with the input that it is left by."""

    steps: tuple[tuple[Operator, int], ...]
    product: Operator


class IntoProducers:
    """Fold ``s z + t`` into the weights and biases of the linear operators that make ``z``."""

    def requires(self, graph: AbstractGraph, affine: Operator) -> Match | Refusal:
        """Return the ways back to the products, or the first reason against the fold."""
        refusal = objection_to_statistics(graph, affine)
        if refusal is not None:
            return refusal
        ways = _ways_back(graph, affine, affine_of(affine).data, affine, ())
        if isinstance(ways, Refusal):
            return ways
        return Match(affine, tuple(way.product for way in ways), tuple(ways))

    def apply(self, match: Match, numbers: Numbers) -> Rewritten | Refusal:
        """Return ``W'`` and ``b'`` of every product."""
        s, t = affine_numbers(match.affine, numbers)
        ways = match.route
        if not isinstance(ways, tuple):
            raise TypeError("this match comes from another rewrite")
        new: dict[str, LinearNumbers] = {}
        for way in ways:
            carried = _carried_back(match.affine, way, Carried(affine_of(match.affine).axis, s, t))
            if isinstance(carried, Refusal):
                return carried
            product, role = way.product, linear_of(way.product)
            if carried.axis != role.output_axis:
                before = product.label
                detail = f"channels of {before} lie on axis {role.output_axis}, the BatchNorm acts on axis {carried.axis}"
                return Refusal(match.affine.module, RefusalReason.WRONG_AXIS, (before,), detail)
            is_shifted = bool(np.any(carried.t != 0.0)) or not way.steps
            new[product.name] = numbers.of(product).behind(role, carried.s, carried.t, with_bias=is_shifted)
        steps = [operator for way in ways for operator, _ in way.steps]
        changed = dict.fromkeys(operator.module for operator in (*steps, *match.absorbers)) if steps else {}
        bypass = (match.affine.name, affine_of(match.affine).data)
        return Rewritten(new, (bypass,), _pattern(match, ways), float(np.abs(s).max(initial=0.0)), "back", tuple(changed))


def _ways_back(graph: AbstractGraph, affine: Operator, value: str, reader: Operator, steps: tuple[tuple[Operator, int], ...]) -> list[_Way] | Refusal:
    """Return the ways from ``value``, which ``reader`` reads, to the products that make it."""
    data, producer = graph.values[value], graph.producer_of(value)
    before = producer.label if producer is not None else data.label
    if producer is None:
        return Refusal(affine.module, RefusalReason.NOT_LINEAR, (before,))
    role = producer.role
    if not isinstance(role, (Linear, KeepsChannels, Maximum, Permutation, Reshape, PixelShuffle, Take, Join, Sum)):
        return Refusal(affine.module, RefusalReason.NOT_LINEAR, (before,))
    if data.is_output:
        return Refusal(affine.module, RefusalReason.GRAPH_OUTPUT, (before,))
    others = tuple(user.label for user in graph.users_of(value) if user.name != reader.name and not _beside(reader, user))
    if others or reader.inputs.count(value) != 1:
        return Refusal(affine.module, RefusalReason.OTHER_CONSUMER, others or (reader.label,), f"they also read {before}")
    if isinstance(role, Linear):
        return objection_to_numbers(graph, affine, producer) or [_Way(steps, producer)]
    parts = role.parts if isinstance(role, (Join, Sum)) else (role.data,)
    ways: list[_Way] = []
    for number, part in enumerate(parts):
        found = _ways_back(graph, affine, part, producer, (*steps, (producer, number)))
        if isinstance(found, Refusal):
            return found
        ways += found
    names = [way.product.name for way in ways]
    if len(set(names)) != len(names):
        return Refusal(affine.module, RefusalReason.OTHER_CONSUMER, (before,), "two of its inputs come from one product")
    return ways


def _beside(reader: Operator, other: Operator) -> bool:
    """Return whether two operators take different channels of the same value."""
    one, two = reader.role, other.role
    return isinstance(one, Take) and isinstance(two, Take) and one.axis == two.axis and (one.stop <= two.start or two.stop <= one.start)


def _carried_back(affine: Operator, way: _Way, carried: Carried) -> Carried | Refusal:
    for operator, part in way.steps:
        role = operator.role
        if isinstance(role, Take) and role.axis != carried.axis:
            return Refusal(affine.module, RefusalReason.BLOCKED, (operator.label,), "it takes a part along another axis than that of the channels")
        if isinstance(role, (Join, Sum)):
            outcome = role.back_into(carried, part)
        elif isinstance(role, (KeepsChannels, Maximum, Permutation, Reshape, PixelShuffle, Take)):
            outcome = role.back(carried)
        else:
            raise TypeError(f"{operator.label} is nothing that a map passes")
        if isinstance(outcome, Blocked):
            return Refusal(affine.module, RefusalReason.BLOCKED, (operator.label,), f"{operator.label}: {outcome.why}")
        carried = outcome
    return carried


def _pattern(match: Match, ways: tuple[_Way, ...]) -> str:
    between = dict.fromkeys(operator.kind.rstrip("_") for way in ways for operator, _ in reversed(way.steps))
    norm = (
        "bn"
        if isinstance(match.affine.role, BatchNorm) or (isinstance(match.affine.role, ConstantAffine) and match.affine.role.is_batch_norm)
        else "affine"
    )
    return "+".join((match.absorbers[0].kind, *between, norm))
