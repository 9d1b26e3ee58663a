"""The same model with every floating tensor, type and cast in float64.

Numbers widen exactly: float32, float16 and bfloat16 are subsets of float64. Casts between them vanish, so that what a model rounds
on purpose on the way is not rounded; integers, booleans, strings and quantised numbers stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import numpy_helper

from exporter.runners.base import Array

__all__ = ["widened_constants", "widened_model"]

NARROW = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})
_DTYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "output_datatype"})


def widened_constants(model: onnx.ModelProto) -> dict[str, Array]:
    """Return the initializers of the main graph by name, floating ones in float64."""
    constants = {tensor.name: _widened_array(tensor) for tensor in model.graph.initializer}
    for sparse in model.graph.sparse_initializer:
        values, indices = _widened_array(sparse.values), numpy_helper.to_array(sparse.indices)
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        dense[tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, dense.shape)] = values
        constants[sparse.values.name] = dense
    return constants


def widened_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in float64, without the initializers of the main graph and with its functions inlined.

    Inlined, because the evaluator gives operators of ours to graphs alone, not to functions.
    """
    copy = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    copy.graph.name = model.graph.name
    copy.graph.node.extend(model.graph.node)
    constants = {tensor.name for tensor in model.graph.initializer}
    copy.graph.input.extend(value for value in model.graph.input if value.name not in constants)
    copy.graph.output.extend(model.graph.output)
    copy.graph.value_info.extend(model.graph.value_info)
    if copy.functions:
        copy = onnx.inliner.inline_local_functions(copy)
    _widen_graph_(copy.graph)
    return copy


def _widen_graph_(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        _widen_type_(value.type)
    for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        _widen_tensor_(tensor)
    for node in graph.node:
        _widen_node_(node)


def _widen_node_(node: onnx.NodeProto) -> None:
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(onnx.helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))
    for attribute in node.attribute:
        if node.op_type == "Constant" and attribute.name in {"value_float", "value_floats"}:
            single = attribute.name == "value_float"
            values: NDArray[np.float64] = np.array(attribute.f if single else list(attribute.floats), np.float64)
            attribute.CopyFrom(onnx.helper.make_attribute("value", numpy_helper.from_array(values)))
        elif attribute.name in _DTYPE_ATTRIBUTES and attribute.i in NARROW:
            attribute.i = onnx.TensorProto.DOUBLE
        for tensor in _tensors(attribute):
            _widen_tensor_(tensor)
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            _widen_graph_(graph)


def _tensors(attribute: onnx.AttributeProto) -> Iterable[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    if attribute.HasField("sparse_tensor"):
        yield attribute.sparse_tensor.values
    yield from (sparse.values for sparse in attribute.sparse_tensors)


def _widen_tensor_(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in NARROW:
        tensor.CopyFrom(numpy_helper.from_array(_widened_array(tensor), tensor.name))


def _widened_array(tensor: onnx.TensorProto) -> Array:
    array: Array = numpy_helper.to_array(tensor)
    return array.astype(np.float64) if tensor.data_type in NARROW else array


def _widen_type_(kind: onnx.TypeProto) -> None:
    which = kind.WhichOneof("value")
    if which in {"tensor_type", "sparse_tensor_type"}:
        tensor = getattr(kind, which)
        if tensor.elem_type in NARROW:
            tensor.elem_type = onnx.TensorProto.DOUBLE
    elif which in {"sequence_type", "optional_type"}:
        _widen_type_(getattr(kind, which).elem_type)
    elif which == "map_type":
        _widen_type_(kind.map_type.value_type)
