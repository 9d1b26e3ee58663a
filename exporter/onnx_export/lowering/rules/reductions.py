"""Reductions: axes were an attribute up to opset 17 (``ReduceSum`` alone takes them as an input since 13).

The mean over all axes behind the channels becomes ``GlobalAveragePool``. A maximum or minimum of booleans goes through int32.
"""

from __future__ import annotations

import onnx_ir as ir

from exporter.onnx_export.lowering.making import Maker, NoFormError, integers_of

__all__ = ["REDUCTIONS", "reduction"]

REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare",
)  # fmt: skip
_SAME_OVER_NOTHING = {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"}
_POOLED_RANKS = (4, 5)
_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE}


def reduction(node: ir.Node, make: Maker, opset: int) -> ir.Value | None:  # noqa: ARG001 - the signature of a rule
    """Write the axes as an attribute, or return the value of another operator."""
    x, axes_input = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    axes = integers_of(axes_input) if axes_input is not None else []
    if x is None or axes is None:
        raise NoFormError("computes its axes", "reduce over axes that are written into the model", at_run_time=True)
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        if node.op_type not in _SAME_OVER_NOTHING:
            raise NoFormError("reduces over no axis", "leave it out")
        return make("Identity", [x])
    keepdims = node.attributes.get_int("keepdims", 1)
    rank = None if x.shape is None else len(x.shape)
    if node.op_type == "ReduceMean" and rank in _POOLED_RANKS and x.dtype in _FLOATS and _are_spatial(axes, rank):
        pooled = make("GlobalAveragePool", [x])
        return pooled if keepdims else make("Flatten", [pooled], {"axis": 1})
    attributes = {"keepdims": keepdims, **({"axes": sorted(axes)} if axes else {})}
    if x.dtype == ir.DataType.BOOL:
        whole = make("Cast", [x], {"to": int(ir.DataType.INT32)})
        return make("Cast", [make(node.op_type, [whole], attributes)], {"to": int(ir.DataType.BOOL)})
    return make(node.op_type, [x], attributes)


def _are_spatial(axes: list[int], rank: int) -> bool:
    return sorted(axis % rank for axis in axes) == list(range(2, rank))
