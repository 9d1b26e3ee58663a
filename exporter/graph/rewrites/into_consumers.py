"""BatchNorm into the products behind it, directly or through operators that the map passes.

    W * (s x + t) + b = (W s) * x + (b + W * t)

    weight   W'[o, c, ...] = W[o, c, ...] s[c]                        c along the input channels, within the group of o
    bias     b'[o] = b[o] + sum over c and all taps of W[o, c, ...] t[c]

Every reader of the BatchNorm has to take it; then it disappears. The bias is exact where every output sees all taps of the weight:
without padding, or with padding that copies values (that padding is an operator of its own). A convolution that pads zeros sees
``s 0 + t`` nowhere: its border would miss ``t``, so it takes the map only if ``t`` is zero. A transposed convolution spreads its taps
over different outputs, so it does with one tap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exporter.artifacts import Refusal, RefusalReason
from exporter.graph.abstract import AbstractGraph, Linear, Operator
from exporter.graph.algebra import shift_seen
from exporter.graph.rewrites.contract import Match, Numbers, Rewritten, affine_numbers, linear_of
from exporter.graph.rewrites.linear_numbers import LinearNumbers
from exporter.graph.rewrites.objections import affine_of, objection_to_numbers, objection_to_statistics
from exporter.graph.through import Blocked, Carried, KeepsChannels, Maximum, Permutation, Reshape, Take

__all__ = ["IntoConsumers"]


@dataclass(frozen=True, slots=True)
class _Way:
    """The operators between the BatchNorm and one product, from the BatchNorm on."""

    steps: tuple[Operator, ...]
    product: Operator


class IntoConsumers:
    """Fold ``s x + t`` into the weights and biases of all linear operators that read it."""

    def requires(self, graph: AbstractGraph, affine: Operator) -> Match | Refusal:
        """Return the ways ahead to the products, or the first reason against the fold."""
        refusal = objection_to_statistics(graph, affine)
        if refusal is not None:
            return refusal
        writer = graph.written_after(affine_of(affine).data, affine)
        if writer is not None:
            return Refusal(
                affine.module, RefusalReason.NOT_LINEAR, (writer.label,), f"{writer.label} changes what the BatchNorm reads, afterwards and in place"
            )
        ways = _ways_ahead(graph, affine, affine.output, ())
        if isinstance(ways, Refusal):
            return ways
        if not ways:
            return Refusal(affine.module, RefusalReason.NOT_LINEAR, (), "nothing reads it")
        return Match(affine, tuple(way.product for way in ways), tuple(ways))

    def apply(self, match: Match, numbers: Numbers) -> Rewritten | Refusal:
        """Return ``W'`` and ``b'`` of every product."""
        s, t = affine_numbers(match.affine, numbers)
        ways = match.route
        if not isinstance(ways, tuple):
            raise TypeError("this match comes from another rewrite")
        new: dict[str, LinearNumbers] = {}
        for way in ways:
            carried = _carried_ahead(match.affine, way, Carried(affine_of(match.affine).axis, s, t))
            if isinstance(carried, Refusal):
                return carried
            product, role = way.product, linear_of(way.product)
            if carried.axis != role.input_axis:
                detail = f"channels of {product.label} lie on axis {role.input_axis}, the BatchNorm acts on axis {carried.axis}"
                return Refusal(match.affine.module, RefusalReason.WRONG_AXIS, (product.label,), detail)
            is_shifted = bool(np.any(carried.t != 0.0))
            if is_shifted and not role.sees_all:
                detail = f"{product.label} pads with zeros, or spreads its taps: some of its outputs would miss the shift"
                return Refusal(match.affine.module, RefusalReason.PADDED, (product.label,), detail)
            have, axis = numbers.of(product), role.weight_input_axis
            seen = shift_seen(have.weight, carried.t, axis=axis, groups=role.groups, is_transposed=role.is_transposed) if is_shifted else None
            new[product.name] = have.ahead(role, carried.s).added(bias=seen)
        pattern = "+".join(("bn", *dict.fromkeys(operator.kind for way in ways for operator in way.steps), match.absorbers[0].kind))
        changed = tuple(dict.fromkeys(operator.module for way in ways for operator in way.steps))
        bypass = (match.affine.name, affine_of(match.affine).data)
        return Rewritten(new, (bypass,), pattern, float(np.abs(s).max(initial=0.0)), "ahead", changed)


def _ways_ahead(graph: AbstractGraph, affine: Operator, value: str, steps: tuple[Operator, ...]) -> list[_Way] | Refusal:
    data = graph.values[value]
    if data.is_output:
        label = steps[-1].label if steps else affine.label
        return Refusal(affine.module, RefusalReason.GRAPH_OUTPUT, (label,), f"what {label} makes is an output")
    ways: list[_Way] = []
    for user in graph.users_of(value):
        role = user.role
        if isinstance(role, Linear) and role.data == value:
            if user.inputs.count(value) != 1:
                return Refusal(affine.module, RefusalReason.NOT_CONSTANT, (user.label,), "it is a weight as well")
            refusal = objection_to_numbers(graph, affine, user)
            if refusal is not None:
                return refusal
            ways.append(_Way(steps, user))
        elif isinstance(role, (KeepsChannels, Maximum, Permutation, Reshape, Take)) and not user.writes:
            found = _ways_ahead(graph, affine, user.output, (*steps, user))
            if isinstance(found, Refusal):
                return found
            ways += found
        else:
            return Refusal(affine.module, RefusalReason.NOT_LINEAR, (user.label,), f"{user.label} reads it")
    names = [way.product.name for way in ways]
    if len(set(names)) != len(names):
        return Refusal(affine.module, RefusalReason.NOT_LINEAR, (names[0],), "one product reads it twice")
    return ways


def _carried_ahead(affine: Operator, way: _Way, carried: Carried) -> Carried | Refusal:
    for operator in way.steps:
        role = operator.role
        if not isinstance(role, (KeepsChannels, Maximum, Permutation, Reshape, Take)):
            raise TypeError(f"{operator.label} is nothing that a map passes")
        outcome = role.forward(carried)
        if isinstance(outcome, Blocked):
            return Refusal(affine.module, RefusalReason.BLOCKED, (operator.label,), f"{operator.label}: {outcome.why}")
        carried = outcome
    return carried
