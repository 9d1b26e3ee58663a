"""BatchNorm directly after a convolution, a linear layer or a matrix product with bias.

    BN(W * x + b) = s (W * x + b) + t = (s W) * x + (s b + t)

    weight   W'[o, ...] = s[o] W[o, ...]      o along the output channels, whatever the groups, strides, dilations, padding
    bias     b'[o] = s[o] b[o] + t[o]         b = 0 where there is none; then a bias is created

It is exact if the product has no other reader (a reader would see scaled numbers), if it is no output of the graph, if the weight
and the bias serve this one call, and if the BatchNorm's channels are the product's output channels.

A second BatchNorm behind the first is the same rewrite once more, since by then the first is part of ``W`` and ``b``.
"""

from __future__ import annotations

import numpy as np

from exporter.artifacts import Refusal, RefusalReason
from exporter.graph.abstract import AbstractGraph, ChannelAffine, Linear, Operator, Training
from exporter.graph.algebra import affine_from_batch_norm, rounded_once, scaled_linear
from exporter.graph.rewrites.contract import Constants, Match, Rewritten

__all__ = ["BatchNormAfterLinear"]


class BatchNormAfterLinear:
    """Fold ``s z + t`` into the weight and bias of the linear operator that makes ``z``."""

    def requires(self, graph: AbstractGraph, affine: Operator) -> Match | Refusal:
        """Return the producer, or the first reason against the fold."""
        refusal = _objection_to_statistics(graph, affine) or _objection_to_producer(graph, affine)
        if refusal is not None:
            return refusal
        producer = graph.producer_of(_affine(affine).data)
        if producer is None:
            raise ValueError("an operator without producer has passed")
        return _objection_to_weights(graph, affine, producer) or Match(affine, producer)

    def apply(self, match: Match, constants: Constants) -> Rewritten:
        """Return ``W'`` and ``b'`` in float64."""
        role, linear = _affine(match.affine), _linear(match.producer)
        gamma, beta, mean, var = (None if name is None else constants.read(name) for name in (role.gamma, role.beta, role.mean, role.var))
        if mean is None or var is None:
            raise ValueError("requires() let a BatchNorm without running statistics through")
        s, t = affine_from_batch_norm(gamma, beta, mean, var, role.eps)
        bias = None if linear.bias is None else constants.read(linear.bias)
        weight, bias = scaled_linear(constants.read(linear.weight), bias, s, t, axis=linear.weight_axis)
        return Rewritten(weight, bias, float(np.abs(s).max(initial=0.0)))

    def ensures(self, match: Match, rewritten: Rewritten, constants: Constants) -> Refusal | None:
        """Refuse numbers that the weight's dtype cannot hold; the unfolded program may still be finite."""
        dtype = constants.dtype(_linear(match.producer).weight)
        for numbers in (rewritten.weight, rewritten.bias):
            num_lost = int(np.count_nonzero(~np.isfinite(rounded_once(numbers, dtype).astype(np.float64))))
            if num_lost:
                detail = f"{num_lost} of {numbers.size} folded numbers are not finite in {dtype}"
                return Refusal(match.affine.module, RefusalReason.OUT_OF_RANGE, (match.producer.label,), detail)
        return None


def _objection_to_statistics(graph: AbstractGraph, affine: Operator) -> Refusal | None:
    """Refuse a BatchNorm that is not a fixed map ``s z + t``."""
    role = _affine(affine)
    if role.training is Training.UNTRACKED:
        return Refusal(affine.module, RefusalReason.NO_RUNNING_STATISTICS, (), role.training.value)
    if role.training is Training.BATCH:
        return Refusal(affine.module, RefusalReason.TRAINING, (), role.training.value)
    for value in [graph.values[name] for name in role.parameters]:
        if not value.is_constant:
            return Refusal(affine.module, RefusalReason.NOT_CONSTANT, (value.label,), f"{value.label} is computed or written to")
        readers = [user for user in graph.users_of_memory(value.name) if not _reads_statistics(user)]
        if readers:
            return Refusal(affine.module, RefusalReason.NOT_CONSTANT, (value.label,), f"also used by {readers[0].label}, which may change it")
    return None


def _objection_to_producer(graph: AbstractGraph, affine: Operator) -> Refusal | None:
    """Refuse if what is normalised is not the output of a linear operator, read by this BatchNorm alone, channel by channel."""
    role = _affine(affine)
    data, producer = graph.values[role.data], graph.producer_of(role.data)
    before = producer.label if producer is not None else data.label
    if producer is None or not isinstance(producer.role, Linear):
        return Refusal(affine.module, RefusalReason.NOT_LINEAR, (before,))
    if data.is_output:
        return Refusal(affine.module, RefusalReason.GRAPH_OUTPUT, (before,))
    others = tuple(graph.operators[name].label for name in data.users if name != affine.name)
    if others:
        return Refusal(affine.module, RefusalReason.OTHER_CONSUMER, others, f"they also read {before}")
    if producer.role.output_axis != role.axis:
        detail = f"channels of {before} lie on axis {producer.role.output_axis}, the BatchNorm acts on axis {role.axis}"
        return Refusal(affine.module, RefusalReason.WRONG_AXIS, (before,), detail)
    if graph.values[producer.role.weight].dtype != data.dtype or graph.values[affine.output].dtype != data.dtype:
        return Refusal(affine.module, RefusalReason.NOT_LINEAR, (before,), "the BatchNorm changes the dtype")
    return None


def _objection_to_weights(graph: AbstractGraph, affine: Operator, producer: Operator) -> Refusal | None:
    """Refuse if the producer's weight or bias is not a constant that serves this one call."""
    linear = _linear(producer)
    for value in [graph.values[name] for name in (linear.weight, linear.bias) if name is not None]:
        if not value.is_constant:
            return Refusal(affine.module, RefusalReason.NOT_CONSTANT, (value.label,), f"{value.label} is computed or written to")
        sharing = tuple(user.label for user in graph.users_of_memory(value.name) if user.name != producer.name)
        if sharing or value.is_output or producer.inputs.count(value.name) != 1:
            named = sharing or (producer.label,)
            return Refusal(affine.module, RefusalReason.SHARED_WEIGHT, named, f"{value.label} also serves {', '.join(named)}")
    return None


def _affine(operator: Operator) -> ChannelAffine:
    if not isinstance(operator.role, ChannelAffine):
        raise TypeError(f"{operator.label} is no BatchNorm")
    return operator.role


def _linear(operator: Operator) -> Linear:
    if not isinstance(operator.role, Linear):
        raise TypeError(f"{operator.label} is not linear")
    return operator.role


def _reads_statistics(user: Operator) -> bool:
    return isinstance(user.role, ChannelAffine) and user.role.training is Training.RUNNING
