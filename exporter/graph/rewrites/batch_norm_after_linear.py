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
        role = _affine(affine)

        def refuse(reason: RefusalReason, *culprits: str, detail: str = "") -> Refusal:
            return Refusal(affine.module, reason, tuple(culprits), detail)

        if role.training is Training.UNTRACKED:
            return refuse(RefusalReason.NO_RUNNING_STATISTICS, detail=role.training.value)
        if role.training is Training.BATCH:
            return refuse(RefusalReason.TRAINING, detail=role.training.value)
        for name in role.parameters:
            readers = [user for user in graph.users_of_memory(name) if not _reads_statistics(user)]
            if not graph.values[name].is_constant:
                return refuse(RefusalReason.NOT_CONSTANT, graph.values[name].label)
            if readers:
                return refuse(RefusalReason.NOT_CONSTANT, graph.values[name].label, detail=f"also used by {readers[0].label}, which may change it")

        producer = graph.producer_of(role.data)
        data = graph.values[role.data]
        if producer is None or not isinstance(producer.role, Linear):
            before = producer.label if producer is not None else data.label
            return refuse(RefusalReason.NOT_LINEAR, before, detail=f"it normalises the output of {before}" if producer is not None else f"it normalises {before}")
        linear = producer.role
        if data.is_output:
            return refuse(RefusalReason.GRAPH_OUTPUT, producer.label)
        others = [graph.operators[name].label for name in data.users if name != affine.name]
        if others:
            return refuse(RefusalReason.OTHER_CONSUMER, *others, detail=f"{producer.label} is also read by {', '.join(others)}")
        if linear.output_axis != role.axis:
            detail = f"channels of {producer.label} lie on axis {linear.output_axis}, the BatchNorm acts on axis {role.axis}"
            return refuse(RefusalReason.WRONG_AXIS, producer.label, detail=detail)
        for name in (linear.weight, linear.bias):
            if name is None:
                continue
            value = graph.values[name]
            if not value.is_constant:
                return refuse(RefusalReason.NOT_CONSTANT, value.label)
            sharing = [user.label for user in graph.users_of_memory(name) if user.name != producer.name]
            if sharing or value.is_output or producer.inputs.count(name) != 1:
                named = sharing or [value.label]
                return refuse(RefusalReason.SHARED_WEIGHT, *named, detail=f"{value.label} also serves {', '.join(named)}")
        if graph.values[linear.weight].dtype != data.dtype or graph.values[affine.output].dtype != data.dtype:
            return refuse(RefusalReason.NOT_LINEAR, producer.label, detail="the BatchNorm changes the dtype")
        return Match(affine, producer)

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
