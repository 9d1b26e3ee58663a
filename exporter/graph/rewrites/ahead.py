"""The ways ahead from a BatchNorm to the products that read it, and a map on its way there."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.artifacts import Refusal, RefusalReason
from exporter.graph.abstract import AbstractGraph, Linear, Operator
from exporter.graph.rewrites.contract import linear_of
from exporter.graph.rewrites.objections import affine_of, objection_to_numbers
from exporter.graph.through import Blocked, Carried, KeepsChannels, Maximum, Permutation, PositiveHomogeneous, Reshape, Size, Take

__all__ = ["PASSES_AHEAD", "WayAhead", "carried_ahead", "ways_ahead"]

PASSES_AHEAD: tuple[type, ...] = (KeepsChannels, Maximum, Permutation, Reshape, Take)
"""Roles that any map may pass on its way ahead."""


@dataclass(frozen=True, slots=True)
class WayAhead:
    """The operators between the BatchNorm and one product, from the BatchNorm on.

    Attributes:
        sizes, output_sizes: of what the product reads and of what it makes.
        source_sizes: of what the last step reads; those of ``sizes`` where there is none.
        behind: a convolution of one tap that alone reads the product, where a border is to be added to what that makes instead.
    """

    steps: tuple[Operator, ...]
    product: Operator
    sizes: tuple[Size, ...] = ()
    output_sizes: tuple[Size, ...] = ()
    source_sizes: tuple[Size, ...] = ()
    behind: Operator | None = None


def ways_ahead(graph: AbstractGraph, affine: Operator, *, passes: tuple[type, ...] = PASSES_AHEAD) -> tuple[WayAhead, ...] | Refusal:
    """Return the ways from a BatchNorm to the products that read it, or what is in the way: every reader has to be on one."""
    ways = _from_value(graph, affine, affine.output, (), passes)
    if isinstance(ways, Refusal):
        return ways
    if not ways:
        return Refusal(affine.module, RefusalReason.NOT_LINEAR, (), "nothing reads it")
    writer = graph.written_after(affine_of(affine).data, affine)
    if writer is not None:
        detail = f"{writer.label} changes what the BatchNorm reads, afterwards and in place"
        return Refusal(affine.module, RefusalReason.NOT_LINEAR, (writer.label,), detail)
    return tuple(ways)


def carried_ahead(affine: Operator, way: WayAhead, carried: Carried) -> Carried | Refusal:
    """Return the map as it reads in front of the product of ``way``, or the operator that it does not pass."""
    for operator in way.steps:
        role = operator.role
        if not isinstance(role, (KeepsChannels, Maximum, PositiveHomogeneous, Permutation, Reshape, Take)):
            raise TypeError(f"{operator.label} is nothing that a map passes")
        outcome = role.forward(carried)
        if isinstance(outcome, Blocked):
            return Refusal(affine.module, RefusalReason.BLOCKED, (operator.label,), f"{operator.label}: {outcome.why}")
        carried = outcome
    role = linear_of(way.product)
    if carried.axis != role.input_axis:
        detail = f"channels of {way.product.label} lie on axis {role.input_axis}, the BatchNorm acts on axis {carried.axis}"
        return Refusal(affine.module, RefusalReason.WRONG_AXIS, (way.product.label,), detail)
    return carried


def _from_value(
    graph: AbstractGraph, affine: Operator, value: str, steps: tuple[Operator, ...], passes: tuple[type, ...]
) -> list[WayAhead] | Refusal:
    data = graph.values[value]
    if data.is_output:
        label = steps[-1].label if steps else affine.label
        return Refusal(affine.module, RefusalReason.GRAPH_OUTPUT, (label,), f"what {label} makes is an output")
    ways: list[WayAhead] = []
    for user in graph.users_of(value):
        role = user.role
        if isinstance(role, Linear) and role.data == value:
            if user.inputs.count(value) != 1:
                return Refusal(affine.module, RefusalReason.NOT_CONSTANT, (user.label,), "it is a weight as well")
            refusal = objection_to_numbers(graph, affine, user)
            if refusal is not None:
                return refusal
            source = graph.values[steps[-1].inputs[0]].shape if steps else data.shape
            ways.append(WayAhead(steps, user, data.shape, graph.values[user.output].shape, source))
        elif isinstance(role, passes) and not user.writes and user.inputs.count(value) == 1:
            found = _from_value(graph, affine, user.output, (*steps, user), passes)
            if isinstance(found, Refusal):
                return found
            ways += found
        else:
            return Refusal(affine.module, RefusalReason.NOT_LINEAR, (user.label,), f"{user.label} reads it")
    names = [way.product.name for way in ways]
    if len(set(names)) != len(names):
        return Refusal(affine.module, RefusalReason.NOT_LINEAR, (names[0],), "one product reads it twice")
    return ways
