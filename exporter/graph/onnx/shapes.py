"""dtype and shape of every value of a model: what the file says, and what ONNX's shape inference finds."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from exporter.errors import FoldError

__all__ = ["TensorType", "dtype_name", "known_tensor", "light_proto", "types_of"]

_SMALL_BYTES = 1024
_EXPRESSION = re.compile(r"[\w .+*()/-]*[A-Za-z_][\w .+*()/-]*")
_MEANS_NOTHING = {"none", "unknown", "unk", "dynamic", "dyn"}
_OF_CONSTANT = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
_DTYPES = {"float": "float32", "double": "float64"}


@dataclass(frozen=True, slots=True)
class TensorType:
    """dtype and shape of a value; the shape is None where not even its rank is known. A text is a size known at run time only."""

    dtype: str
    shape: tuple[int | str, ...] | None


def dtype_name(dtype: int) -> str:
    """Return the name of a dtype of ONNX as numpy has it: ``float32``, ``bfloat16``, ``int64``."""
    name = ir.DataType(dtype).name.lower()
    return _DTYPES.get(name, name)


def known_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor that a value holds before anything runs: that of an initializer that no input overrides, or of a Constant."""
    node = None if value is None else value.producer()
    if value is None or node is None:
        return None if value is None or value.is_graph_input() or not value.is_initializer() else value.const_value
    if node.op_type != "Constant" or node.domain not in {"", "ai.onnx"} or len(node.attributes) != 1:
        return None
    name, attribute = next(iter(node.attributes.items()))
    if name == "value":
        return attribute.as_tensor()
    dtype = _OF_CONSTANT.get(name)
    return None if dtype is None else ir.Tensor(np.array(attribute.value, dtype))


def types_of(model: ir.Model) -> dict[str, TensorType]:
    """Return the type of every value of the outermost graph that has one, by name.

    Raises:
        FoldError: ONNX's shape inference does not take the model (E384).
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(light_proto(model), check_type=False, strict_mode=False, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError) as err:
        raise FoldError("E384", "the shapes of the ONNX model cannot be inferred", facts={"found": str(err).strip()[:600]}) from err
    graph = inferred.graph
    types = {
        value.name: _type_of(value)
        for value in (*graph.value_info, *graph.output, *graph.input)
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type
    }
    for tensor in graph.initializer:
        types[tensor.name] = TensorType(dtype_name(tensor.data_type), tuple(tensor.dims))
    return types


def light_proto(model: ir.Model) -> onnx.ModelProto:
    """Return a model whose large constants are inputs: all that shape inference and checker need, and no weights."""
    proto = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    proto.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items())
    graph = proto.graph
    graph.name = model.graph.name or "main"
    for value in model.graph.inputs:
        if known_tensor(value) is None:
            graph.input.append(ir.serde.serialize_value(value))
    for name, value in model.graph.initializers.items():
        tensor = known_tensor(value)
        if tensor is None:
            continue
        if tensor.nbytes > _SMALL_BYTES:
            graph.input.append(_input(name, tensor))
        else:
            graph.initializer.append(ir.serde.serialize_tensor(tensor))
            graph.initializer[-1].name = name
    for node in model.graph:
        tensor = known_tensor(node.outputs[0]) if node.outputs else None
        if tensor is not None and tensor.nbytes > _SMALL_BYTES:
            graph.input.append(_input(node.outputs[0].name or "", tensor))
        else:
            graph.node.append(ir.serde.serialize_node(node))
    graph.output.extend(ir.serde.serialize_value(value) for value in model.graph.outputs)
    given = {value.name for value in (*graph.input, *graph.output)}
    for node in model.graph:
        for value in node.outputs:
            if value.name and value.name not in given and value.type is not None and value.shape is not None:
                graph.value_info.append(ir.serde.serialize_value(value))
    return proto


def _input(name: str, tensor: ir.TensorProtocol) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, int(tensor.dtype), [int(size) for size in tensor.shape.numpy()])


def _type_of(value: onnx.ValueInfoProto) -> TensorType:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return TensorType(dtype_name(kind.elem_type), None)
    return TensorType(dtype_name(kind.elem_type), tuple(_size_of(dim, f"{value.name}.{axis}") for axis, dim in enumerate(kind.shape.dim)))


def _size_of(dim: onnx.TensorShapeProto.Dimension, place: str) -> int | str:
    """Return a size; a text that is no name or expression of names says nothing, so it equals no other."""
    if dim.WhichOneof("value") == "dim_value":
        return dim.dim_value
    text = dim.dim_param
    return text if _EXPRESSION.fullmatch(text) and text.lower() not in _MEANS_NOTHING else f"size of {place}"
