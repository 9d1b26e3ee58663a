"""The precision of a file that is quantised already, by whomever: the dtype between its pairs says it."""

from __future__ import annotations

from collections import Counter

import onnx

__all__ = ["eight_bit_precision"]

_KINDS: dict[int, str] = {
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
    onnx.TensorProto.FLOAT8E4M3FN: "fp8",
    onnx.TensorProto.FLOAT8E5M2: "fp8",
}


def eight_bit_precision(model: onnx.ModelProto) -> str:
    """Return ``int8`` or ``fp8``, by most of the pairs of the main graph; empty where it has none."""
    if not any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in model.graph.node):
        return ""
    dtypes = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    constants = [node for node in model.graph.node if node.op_type == "Constant"]
    dtypes |= {node.output[0]: attribute.t.data_type for node in constants for attribute in node.attribute if attribute.name == "value"}
    counts = Counter(kind for node in model.graph.node if (kind := _KINDS.get(_dtype_of(node, dtypes), "")))
    return counts.most_common(1)[0][0] if counts else ""


def _dtype_of(node: onnx.NodeProto, dtypes: dict[str, int]) -> int:
    """Return the dtype of the small numbers of a pair's node, 0 for another node and where it is not known."""
    if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
        return 0
    if len(node.input) > 2 and node.input[2]:  # the zero point
        return dtypes.get(node.input[2], 0)
    if node.op_type == "DequantizeLinear":
        return dtypes.get(node.input[0], 0)
    return next((attribute.i for attribute in node.attribute if attribute.name == "output_dtype" and attribute.i), onnx.TensorProto.UINT8)
