"""Operators whose meaning the evaluator takes from another opset than the model's, or that it computes number by number."""

from __future__ import annotations

import abc
import math
from typing import Any

import numpy as np
import torch
from onnx.reference.op_run import OpRun

from exporter.runners.base import Array
from exporter.runners.onnx_float64.resizing import Resize, Upsample
from exporter.runners.onnx_float64.windows import AveragePool, Conv, ConvTranspose, MaxPool

__all__ = ["OPERATORS"]


class BatchNormalization(OpRun):
    """``BatchNormalization``: the evaluator's own mixes the batch's statistics in below opset 14, where only training does."""

    op_domain = ""

    def _run(self, x: Array, scale: Array, bias: Array, mean: Array, var: Array, **attributes: Any) -> tuple[Array, ...]:  # noqa: ANN401 - as ONNX has them
        is_new = self.run_params["opsets"][""] >= 14
        if attributes.get("spatial") == 0 or (any(self.output[1:]) and not is_new):
            raise NotImplementedError("statistics of each cell, or the training mode of before opset 14")
        if not (is_new and attributes.get("training_mode")):
            return (_normalised(x, scale, bias, mean, var, attributes["epsilon"]),)
        axes = tuple(axis for axis in range(x.ndim) if axis != 1)
        now, spread = x.mean(axes), x.var(axes)
        kept = attributes["momentum"]
        running = (mean * kept + now * (1 - kept), var * kept + spread * (1 - kept))
        return (_normalised(x, scale, bias, now, spread, attributes["epsilon"]), *running)[: len(self.output)]


def _normalised(x: Array, scale: Array, bias: Array, mean: Array, var: Array, epsilon: float) -> Array:
    shape = (-1, *(1,) * (x.ndim - 2))
    factor = scale / np.sqrt(var + epsilon)
    result: Array = (x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)
    return result


class Erf(OpRun):
    """``Erf``, which the evaluator computes number by number, and in float32."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (torch.special.erf(torch.from_numpy(np.asarray(x, order="C"))).numpy(),)


class Sigmoid(OpRun):
    """``Sigmoid``, which the evaluator computes number by number."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (torch.sigmoid(torch.from_numpy(np.asarray(x, order="C"))).numpy(),)


class _AlongAxis(OpRun):
    """Before opset 13 these work on all axes from ``axis`` on as one, and ``axis`` is 1 where it is not given."""

    op_domain = ""

    def _run(self, x: Array, axis: int | None = None) -> tuple[Array]:
        if not x.size:
            return (x,)
        if self.run_params["opsets"][""] >= 13:
            return (self.along(x, -1 if axis is None else axis),)
        given = any(attribute.name == "axis" for attribute in self.onnx_node.attribute)
        first = (axis if axis is not None and given else 1) % x.ndim
        rows: Array = x.reshape(math.prod(x.shape[:first]), -1)
        return (self.along(rows, -1).reshape(x.shape),)

    @staticmethod
    @abc.abstractmethod
    def along(x: Array, axis: int) -> Array:
        """Compute along one axis."""


class Softmax(_AlongAxis):
    """``Softmax`` of every opset."""

    @staticmethod
    def along(x: Array, axis: int) -> Array:
        """Compute along one axis."""
        powers: Array = np.exp(x - x.max(axis=axis, keepdims=True))
        shares: Array = powers / powers.sum(axis=axis, keepdims=True)
        return shares


class LogSoftmax(_AlongAxis):
    """``LogSoftmax`` of every opset."""

    @staticmethod
    def along(x: Array, axis: int) -> Array:
        """Compute along one axis."""
        below: Array = x - x.max(axis=axis, keepdims=True)
        logs: Array = below - np.log(np.exp(below).sum(axis=axis, keepdims=True))
        return logs


class Hardmax(_AlongAxis):
    """``Hardmax`` of every opset: the first of the largest."""

    @staticmethod
    def along(x: Array, axis: int) -> Array:
        """Compute along one axis."""
        result = np.zeros_like(x)
        np.put_along_axis(result, np.expand_dims(x.argmax(axis), axis), 1, axis)
        return result


OPERATORS: tuple[type[OpRun], ...] = (
    AveragePool,
    BatchNormalization,
    Conv,
    ConvTranspose,
    Erf,
    Hardmax,
    LogSoftmax,
    MaxPool,
    Resize,
    Sigmoid,
    Softmax,
    Upsample,
)
"""In place of the evaluator's own."""
