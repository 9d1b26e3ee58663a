"""What every rewrite asks of a BatchNorm and of the operator that takes it."""

from __future__ import annotations

from exporter.artifacts import Refusal, RefusalReason
from exporter.graph.abstract import AbstractGraph, BatchNorm, ChannelAffine, ConstantAffine, Linear, Operator, Training

__all__ = ["affine_of", "objection_to_numbers", "objection_to_statistics"]


def affine_of(operator: Operator) -> ChannelAffine:
    """Return the role of a BatchNorm."""
    if not isinstance(operator.role, (BatchNorm, ConstantAffine)):
        raise TypeError(f"{operator.label} is no BatchNorm")
    return operator.role


def objection_to_statistics(graph: AbstractGraph, affine: Operator) -> Refusal | None:
    """Refuse a BatchNorm that is not a fixed map ``s z + t``, or that changes the dtype."""
    role = affine_of(affine)
    if isinstance(role, BatchNorm) and role.training is Training.UNTRACKED:
        return Refusal(affine.module, RefusalReason.NO_RUNNING_STATISTICS, (), role.training.value)
    if isinstance(role, BatchNorm) and role.training is Training.BATCH:
        return Refusal(affine.module, RefusalReason.TRAINING, (), role.training.value)
    for name in role.parameters:
        value = graph.values[name]
        if not value.is_constant:
            return Refusal(affine.module, RefusalReason.NOT_CONSTANT, (value.label,), f"{value.label} is computed or written to")
        for user in graph.users_of_memory(name):
            if name in user.writes or _trains(user):
                return Refusal(affine.module, RefusalReason.NOT_CONSTANT, (value.label,), f"also used by {user.label}, which may change it")
    if graph.values[role.data].dtype != graph.values[affine.output].dtype:
        return Refusal(affine.module, RefusalReason.NOT_LINEAR, (), "the BatchNorm changes the dtype")
    return None


def objection_to_numbers(graph: AbstractGraph, affine: Operator, linear: Operator) -> Refusal | None:
    """Refuse if weight or bias of ``linear`` is not a constant, or of another dtype than what it makes.

    A weight that serves several calls is no objection: each call that is changed gets a copy of its own.
    """
    role = linear.role
    if not isinstance(role, Linear):
        raise TypeError(f"{linear.label} is not linear")
    for value in [graph.values[name] for name in (role.weight, role.bias) if name is not None]:
        if not value.is_constant:
            return Refusal(affine.module, RefusalReason.NOT_CONSTANT, (value.label,), f"{value.label} is computed or written to")
        if linear.inputs.count(value.name) != 1:
            return Refusal(affine.module, RefusalReason.NOT_CONSTANT, (value.label,), f"{value.label} is read twice by {linear.label}")
        if value.dtype != graph.values[linear.output].dtype:
            return Refusal(affine.module, RefusalReason.NOT_LINEAR, (linear.label,), "it changes the dtype")
    return None


def _trains(user: Operator) -> bool:
    return isinstance(user.role, BatchNorm) and user.role.training is not Training.RUNNING
