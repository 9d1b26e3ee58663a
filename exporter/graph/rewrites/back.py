"""The ways back from a BatchNorm to the products that make its data, and a map on its way there."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.artifacts import Refusal, RefusalReason
from exporter.graph.abstract import AbstractGraph, Linear, Operator
from exporter.graph.rewrites.objections import affine_of, objection_to_numbers
from exporter.graph.through import (
    Blocked,
    Carried,
    Join,
    KeepsChannels,
    Maximum,
    Permutation,
    PixelShuffle,
    PositiveHomogeneous,
    Reshape,
    Sum,
    Take,
)

__all__ = ["PASSES_BACK", "WayBack", "carried_back", "ways_back"]

PASSES_BACK: tuple[type, ...] = (KeepsChannels, Maximum, Permutation, Reshape, PixelShuffle, Take, Join, Sum)
"""Roles that any map may pass on its way back."""


@dataclass(frozen=True, slots=True)
class WayBack:
    """The operators between the BatchNorm and one product, from the BatchNorm on, each with the input that it is left by.

    Attributes:
        is_shared: whether something else reads what the product makes, too.
    """

    steps: tuple[tuple[Operator, int], ...]
    product: Operator
    is_shared: bool = False


def ways_back(
    graph: AbstractGraph, affine: Operator, *, passes: tuple[type, ...] = PASSES_BACK, may_share: bool = False
) -> tuple[WayBack, ...] | Refusal:
    """Return the ways from a BatchNorm to the products that make its data, or what is in the way.

    Args:
        passes: roles that may stand on a way.
        may_share: whether a product may have other readers, or be an output of the graph.
    """
    search = _Search(graph, affine, passes, may_share)
    ways = search.from_value(affine_of(affine).data, affine, ())
    return ways if isinstance(ways, Refusal) else tuple(ways)


def carried_back(affine: Operator, way: WayBack, carried: Carried) -> Carried | Refusal:
    """Return the map as it reads behind the product of ``way``, or the operator that it does not pass."""
    for operator, part in way.steps:
        role = operator.role
        if isinstance(role, Take) and role.axis != carried.axis:
            return Refusal(affine.module, RefusalReason.BLOCKED, (operator.label,), "it takes a part along another axis than that of the channels")
        if isinstance(role, (Join, Sum)):
            outcome = role.back_into(carried, part)
        elif isinstance(role, (KeepsChannels, Maximum, PositiveHomogeneous, Permutation, Reshape, PixelShuffle, Take)):
            outcome = role.back(carried)
        else:
            raise TypeError(f"{operator.label} is nothing that a map passes")
        if isinstance(outcome, Blocked):
            return Refusal(affine.module, RefusalReason.BLOCKED, (operator.label,), f"{operator.label}: {outcome.why}")
        carried = outcome
    return carried


@dataclass(frozen=True, slots=True)
class _Search:
    graph: AbstractGraph
    affine: Operator
    passes: tuple[type, ...]
    may_share: bool

    def from_value(self, value: str, reader: Operator, steps: tuple[tuple[Operator, int], ...]) -> list[WayBack] | Refusal:
        """Return the ways from ``value``, which ``reader`` reads."""
        graph, name = self.graph, self.affine.module
        data, producer = graph.values[value], graph.producer_of(value)
        before = producer.label if producer is not None else data.label
        if producer is None or not isinstance(producer.role, (Linear, *self.passes)):
            return Refusal(name, RefusalReason.NOT_LINEAR, (before,))
        role = producer.role
        others = tuple(user.label for user in graph.users_of(value) if user.name != reader.name and not _beside(reader, user))
        may_share = self.may_share and isinstance(role, Linear)
        if data.is_output and not may_share:
            return Refusal(name, RefusalReason.GRAPH_OUTPUT, (before,))
        if (others and not may_share) or reader.inputs.count(value) != 1:
            return Refusal(name, RefusalReason.OTHER_CONSUMER, others or (reader.label,), f"they also read {before}")
        if isinstance(role, Linear):
            return objection_to_numbers(graph, self.affine, producer) or [WayBack(steps, producer, bool(others) or data.is_output)]
        ways: list[WayBack] = []
        for number, part in enumerate(_parts(producer)):
            found = self.from_value(part, producer, (*steps, (producer, number)))
            if isinstance(found, Refusal):
                return found
            ways += found
        names = [way.product.name for way in ways]
        if len(set(names)) != len(names):
            return Refusal(name, RefusalReason.OTHER_CONSUMER, (before,), "two of its inputs come from one product")
        return ways


def _parts(operator: Operator) -> tuple[str, ...]:
    role = operator.role
    if isinstance(role, (Join, Sum)):
        return role.parts
    if isinstance(role, (KeepsChannels, Maximum, PositiveHomogeneous, Permutation, Reshape, PixelShuffle, Take)):
        return (role.data,)
    raise TypeError(f"{operator.label} is nothing that a map passes")


def _beside(reader: Operator, other: Operator) -> bool:
    """Return whether two operators take different channels of the same value."""
    one, two = reader.role, other.role
    return isinstance(one, Take) and isinstance(two, Take) and one.axis == two.axis and (one.stop <= two.start or two.stop <= one.start)
