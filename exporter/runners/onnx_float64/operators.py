"""Operators whose meaning the evaluator takes from another opset than the model's."""

from __future__ import annotations

import abc
import math
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from exporter.runners.base import Array
from exporter.runners.onnx_float64.resizing import Resize, Upsample
from exporter.runners.onnx_float64.windows import AveragePool, Conv, ConvTranspose, MaxPool

__all__ = ["OPERATORS"]


class BatchNormalization(OpRun):
    """``BatchNormalization`` with the running statistics; the evaluator's own mixes in the batch's below opset 14."""

    op_domain = ""

    def _run(self, x: Array, scale: Array, bias: Array, mean: Array, var: Array, **attributes: Any) -> tuple[Array]:  # noqa: ANN401 - as ONNX has them
        if attributes.get("training_mode") or any(self.output[1:]) or attributes.get("spatial") == 0:
            raise NotImplementedError("BatchNormalization in training mode, or with statistics of each cell")
        shape = (-1, *(1,) * (x.ndim - 2))
        factor = scale / np.sqrt(var + attributes["epsilon"])
        return ((x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape),)


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
    Hardmax,
    LogSoftmax,
    MaxPool,
    Resize,
    Softmax,
    Upsample,
)
"""In place of the evaluator's own."""
