"""Which nodes stay in float32, and why.

normalisation     the statistics of a layer, group or instance
softmax           and logsoftmax
reduction         sums and means over many values, and the functions that make them large or small: exp, log, pow
float32 only      the operator takes no other precision in this opset, or makes a value without an input that says which
asked for         a pattern of the configuration matches the node's module or its name, or a search for islands named it
constant          a constant of the node is beyond the precision, or so small that it would lose its digits
subgraph          a branch or a loop
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["changeable_inputs", "find_islands", "floats_of", "is_float"]

_KINDS = {
    "normalisation": {
        "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization", "LRN",
        "MeanVarianceNormalization", "RMSNormalization",
    },
    "softmax": {"LogSoftmax", "Softmax"},
    "reduction": {
        "CumSum", "Exp", "GlobalAveragePool", "Log", "Pow", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd",
        "ReduceSum", "ReduceSumSquare",
    },
    "float32 only": {"DequantizeLinear", "DynamicQuantizeLinear", "NonMaxSuppression", "QuantizeLinear"},
}  # fmt: skip
_REASONS = {op_type: reason for reason, op_types in _KINDS.items() for op_type in op_types}
_DTYPES = {"float16": "tensor(float16)", "bfloat16": "tensor(bfloat16)"}
_RANGES = {"float16": (2.0**-14, 65504.0), "bfloat16": (2.0**-126, 3.38953139e38)}
"""Smallest number with all its digits, and the largest finite one."""


def find_islands(model: ir.Model, precision: str, patterns: Sequence[str], kept: AbstractSet[str] = frozenset()) -> dict[ir.Node, str]:
    """Return node -> why it stays in float32, for the nodes of the main graph that compute with float32.

    Args:
        model: in float32, functions inlined.
        precision: ``float16`` or ``bfloat16``.
        patterns: in the way of ``fnmatch``, of module names or node names.
        kept: names of further nodes.
    """
    opset = model.opset_imports.get("", 0)
    islands = {}
    for node in model.graph:
        if reason := _reason(node, opset, precision, patterns):
            islands[node] = reason
        elif node.name in kept:
            islands[node] = "asked for"
    return islands


def is_float(value: ir.Value | None) -> bool:
    """Return whether the value is a tensor of float32."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def floats_of(value: ir.Value | None) -> NDArray[np.float32] | None:
    """Return the numbers of a float32 constant, None of anything else."""
    tensor = None if value is None or not is_float(value) or value.is_graph_input() else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _reason(node: ir.Node, opset: int, precision: str, patterns: Sequence[str]) -> str:
    if any(attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS} for attribute in node.attributes.values()):
        return "subgraph"
    if not any(is_float(value) for value in (*node.inputs, *node.outputs)):
        return ""
    names = (node.metadata_props.get("exporter.module", ""), node.name or "")
    if any(name and fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns):
        return "asked for"
    if node.op_type in _REASONS:
        return _REASONS[node.op_type]
    if node.op_type == "Cast":
        return ""
    if node.domain or not _takes(node, opset, _DTYPES[precision]):
        return "float32 only"
    return "constant" if any(_is_out_of_range(value, precision) for value in node.inputs) else ""


def _takes(node: ir.Node, opset: int, dtype: str) -> bool:
    """Return whether the schema lets every float32 input and output of a changeable type be ``dtype``, and an input decides it."""
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    decided: set[str] = set()
    for position, value in enumerate(node.inputs):
        formal = schema.inputs[min(position, len(schema.inputs) - 1)]
        if is_float(value) and _is_changeable(formal):
            if dtype not in formal.types:
                return False
            decided.add(formal.type_str)
    for position, value in enumerate(node.outputs):
        formal = schema.outputs[min(position, len(schema.outputs) - 1)]
        if is_float(value) and (dtype not in formal.types or formal.type_str not in decided):
            return False
    return True


def _is_changeable(formal: onnx.defs.OpSchema.FormalParameter) -> bool:
    return len(formal.types) > 1


def changeable_inputs(node: ir.Node, opset: int) -> list[int]:
    """Return the positions of float32 inputs whose dtype follows that of the node."""
    if node.op_type == "Cast":
        return []
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    return [
        position
        for position, value in enumerate(node.inputs)
        if is_float(value) and _is_changeable(schema.inputs[min(position, len(schema.inputs) - 1)])
    ]


def _is_out_of_range(value: ir.Value | None, precision: str) -> bool:
    """Return whether a constant has a value beyond the range, or is a single number that would lose digits."""
    numbers = floats_of(value)
    if numbers is None or not numbers.size:
        return False
    smallest, largest = _RANGES[precision]
    size = np.abs(numbers[np.isfinite(numbers)])
    return bool((size > largest).any() or (numbers.size == 1 and size.any() and size.max() < smallest))
