"""What an ONNX model is but for its weights: two models of one structure can lend each other's engine their weights."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from exporter.artifacts import OnnxModel

if TYPE_CHECKING:
    import onnx

__all__ = ["structure_digest"]

_CONTENT = ("raw_data", "float_data", "int32_data", "double_data", "external_data")


def structure_digest(model: OnnxModel) -> str:
    """Return a SHA-256 over nodes, attributes, inputs, outputs, and the names, shapes and dtypes of the weights.

    Values count only where they are whole numbers or booleans, which are shapes and axes, and where they are scales of values in 8 bits: an engine
    has them built in.
    """
    import onnx

    proto = onnx.load(model.path, load_external_data=False)
    for field in ("doc_string", "producer_name", "producer_version", "metadata_props"):
        proto.ClearField(field)
    graph = proto.graph
    graph.ClearField("value_info")
    scales = {node.input[1] for node in graph.node if node.op_type in {"DequantizeLinear", "QuantizeLinear"}}
    for tensor in graph.initializer:
        if _is_floating(tensor) and tensor.name not in scales:
            for field in _CONTENT:
                tensor.ClearField(field)
            tensor.data_location = onnx.TensorProto.DEFAULT
    for node in graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    kept = sorted(graph.initializer, key=lambda tensor: tensor.name)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


def _is_floating(tensor: onnx.TensorProto) -> bool:
    import onnx

    return str(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).startswith(("float", "bfloat"))
