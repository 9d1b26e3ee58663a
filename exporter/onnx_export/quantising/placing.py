"""The pairs of QuantizeLinear and DequantizeLinear, in the form that TensorRT reads from 8.5 to 11.

- symmetric: every zero point is 0
- int8: one scale for a value, one for each output channel of a weight; fp8 (E4M3FN): one scale for either, since its exponent follows the
  channels by itself
- a value that several products read has one pair, beside its producer
- weights stay float32 in the file, with a pair of their own: TensorRT 8 takes them in no other form, and they can be refitted
- biases stay float32, without a pair
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporter.onnx_export.precision.islands import floats_of
from exporter.onnx_export.quantising.products import Product

__all__ = ["FIRST_OPSET", "quantise_"]

FIRST_OPSET = {"int8": 17, "fp8": 19}
"""The first opset that has the pairs."""
_LARGEST = {"int8": 127.0, "fp8": 448.0}
_DTYPES = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}
_ZEROS = {"int8": np.dtype(np.int8), "fp8": np.dtype(ml_dtypes.float8_e4m3fn)}


def quantise_(model: ir.Model, precision: str, products: Sequence[Product], ranges: Mapping[str, float]) -> None:
    """Put pairs at the inputs of ``products``, in place.

    Args:
        model: in float32.
        precision: ``int8`` or ``fp8``.
        products: of ``model``.
        ranges: name of a product's data -> the largest magnitude that is kept; what is beyond it becomes it.
    """
    placing = _Placing(model.graph, precision)
    for product in products:
        product.node.replace_input_with(0, placing.pair_of_value(product.data, ranges[product.data.name or ""]))
        product.node.replace_input_with(1, placing.pair_of_weight(product.weight, product.axis))


class _Placing:
    """The pairs of one model."""

    def __init__(self, graph: ir.Graph, precision: str) -> None:
        self._graph, self._precision = graph, precision
        self._largest, self._dtype, self._zero = _LARGEST[precision], _DTYPES[precision], _ZEROS[precision]
        self._made: dict[tuple[ir.Value, int | None], ir.Value] = {}

    def pair_of_value(self, value: ir.Value, largest: float) -> ir.Value:
        """Return what a product reads instead of ``value``."""
        return self._pair(value, np.float32(largest / self._largest), None)

    def pair_of_weight(self, value: ir.Value, axis: int) -> ir.Value:
        """Return what a product reads instead of a weight."""
        numbers = floats_of(value)
        if numbers is None:
            return value
        size = np.abs(numbers.astype(np.float64))
        if self._precision == "fp8":
            return self._pair(value, np.float32(size.max() / self._largest), None)
        scales = size.max(axis=tuple(other for other in range(size.ndim) if other != axis)) / self._largest
        scales = np.where(scales < np.finfo(np.float32).tiny, scales.max(), scales)  # a channel of zeros takes any scale but 0
        return self._pair(value, scales.astype(np.float32), axis)

    def _pair(self, value: ir.Value, scale: NDArray[np.float32] | np.float32, axis: int | None) -> ir.Value:
        if (value, axis) in self._made:
            return self._made[value, axis]
        scales = np.asarray(scale, np.float32)
        suffix = "" if axis is None else f"/{axis}"
        name = f"{value.name}/{self._precision}{suffix}"
        numbers = [self._constant(f"{name}/scale", scales), self._constant(f"{name}/zero_point", np.zeros(scales.shape, self._zero))]
        attributes = {} if axis is None else {"axis": axis}
        down = ir.node("QuantizeLinear", [value, *numbers], attributes, name=f"{name}/quantize")
        quantised = down.outputs[0]
        quantised.name, quantised.type, quantised.shape = name, ir.TensorType(self._dtype), value.shape
        up = ir.node("DequantizeLinear", [quantised, *numbers], attributes, name=f"{name}/dequantize")
        made = up.outputs[0]
        made.name, made.type, made.shape = f"{name}/float32", ir.TensorType(ir.DataType.FLOAT), value.shape
        producer = value.producer()
        if producer is None or producer.graph is not self._graph:
            self._graph.insert_before(self._graph[0], [down, up])
        else:
            self._graph.insert_after(producer, [down, up])
        self._made[value, axis] = made
        return made

    def _constant(self, name: str, numbers: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
        tensor = ir.tensor(numbers, name=name)
        made = ir.Value(name=name, shape=ir.Shape(list(numbers.shape)), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(made)
        return made
