"""In which precision an ONNX file from elsewhere stands, and whether it can be given another one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import onnx

from exporter.artifacts import OnnxModel
from exporter.errors import ArtifactError
from exporter.onnx_export.external import all_tensors

__all__ = ["require_float32", "stored_precisions"]

_TENSOR = onnx.TensorProto
_FLOATING: dict[int, str] = {_TENSOR.DOUBLE: "float64", _TENSOR.FLOAT: "float32", _TENSOR.FLOAT16: "float16", _TENSOR.BFLOAT16: "bfloat16"}
_FLOAT8 = {
    getattr(_TENSOR, name)
    for name in ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0", "FLOAT4E2M1")
    if hasattr(_TENSOR, name)
}
_QUANTISING = {
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QAttention", "QGemm", "QLinearAdd", "QLinearConv",
    "QLinearMatMul", "QuantizeLinear",
}  # fmt: skip
_SHOWN = 3
_HELP = "take it as it is, without --precision; or convert the float32 file that it was made from"


def stored_precisions(message: onnx.ModelProto) -> dict[str, float]:
    """Return precision -> share of the floating numbers that the file stores, and those that only its inputs, outputs or casts have with 0."""
    counts: Counter[str] = Counter()
    for tensor in all_tensors(message):
        if tensor.data_type in _FLOATING:
            counts[_FLOATING[tensor.data_type]] += math.prod(tensor.dims)
    total = sum(counts.values())
    shares = {name: count / total if total else 0.0 for name, count in counts.most_common()}
    for value in (*message.graph.input, *message.graph.output):
        name = _FLOATING.get(value.type.tensor_type.elem_type)
        if name:
            shares.setdefault(name, 0.0)
    for node in _nodes(message):
        if node.op_type == "Cast":
            name = _FLOATING.get(next((attribute.i for attribute in node.attribute if attribute.name == "to"), 0))
            if name in {"float16", "bfloat16"}:
                shares.setdefault(name, 0.0)
    return shares


def require_float32(model: OnnxModel, message: onnx.ModelProto, precision: str) -> None:
    """Refuse a file that is not in float32. Some float64 constants, as exporters leave them, are let be.

    Raises:
        ArtifactError: it is quantised (E463), or stores or computes with another precision (E462).
    """
    quantised = [node for node in _nodes(message) if node.op_type in _QUANTISING]
    if quantised or any(tensor.data_type in _FLOAT8 for tensor in all_tensors(message)):
        shown = ", ".join(f"{node.op_type} {node.name or node.output[0]}" for node in quantised[:_SHOWN])
        more = f", and {len(quantised) - _SHOWN} more" if len(quantised) > _SHOWN else ""
        found = f"{shown}{more}" if shown else "weights in 8 bits or fewer"
        facts = {"file": model.path, "found": found, "expected": "a float32 file without QuantizeLinear and the like"}
        raise ArtifactError("E463", "the ONNX file is quantised already", facts=facts, help=_HELP)
    shares = stored_precisions(message)
    others = {name: share for name, share in shares.items() if name != "float32"}
    if not others.keys() <= {"float64"} or others.get("float64", 0.0) > shares.get("float32", 0.0):
        found = ", ".join(f"{name} {share:.0%} of the numbers" if share else f"{name} in casts, inputs or outputs" for name, share in others.items())
        facts = {"file": model.path, "found": found, "expected": f"float32 throughout, or {precision}"}
        raise ArtifactError("E462", "the ONNX file has another precision than the one that was asked for", facts=facts, help=_HELP)


def _nodes(message: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from _nodes_of(message.graph.node)
    for function in message.functions:
        yield from _nodes_of(function.node)


def _nodes_of(nodes: object) -> Iterator[onnx.NodeProto]:
    for node in nodes:  # type: ignore[attr-defined]
        yield node
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes_of(graph.node)
