"""``GroupNormalization`` by ``InstanceNormalization`` over a view in which a group is a channel.

    x (N, C, ...) -> (N, G, C / G * ...) -> each group to mean 0 and variance 1 -> (N, C, ...)

From opset 21 on scale and bias belong to channels and are applied afterwards; before, they belong to groups, as those of
``InstanceNormalization`` do in this view. From opset 21 on the statistics of half precision are taken in float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporter.onnx_export.lowering.making import Maker, NoFormError, rank_of

__all__ = ["group_normalization"]

_BY_CHANNEL = 21
_HALVES = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


def group_normalization(node: ir.Node, make: Maker, opset: int) -> ir.Value:
    """Return the normalised, scaled and shifted value in the shape of the input."""
    x, scale, bias = node.inputs
    if x is None or scale is None or bias is None or x.dtype is None:
        raise NoFormError("has an input whose dtype is not known", at_run_time=True)
    rank = rank_of(x)
    groups = node.attributes.get_int("num_groups")
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    by_channel = opset >= _BY_CHANNEL
    is_widened = by_channel and x.dtype in _HALVES and node.attributes.get_int("stash_type", 1) == 1
    wide = make("Cast", [x], {"to": int(ir.DataType.FLOAT)}) if is_widened else x
    kind = np.float32 if is_widened else x.dtype.numpy()
    in_groups = make("Reshape", [wide, make.integers([0, groups, -1])])
    own = (make.constant(np.ones(groups, kind)), make.constant(np.zeros(groups, kind))) if by_channel else (scale, bias)
    normal = make("InstanceNormalization", [in_groups, *own], {"epsilon": epsilon})
    value = make("Reshape", [normal, _shape_of(x, make)])
    if not by_channel:
        return value
    if is_widened:
        value = make("Cast", [value], {"to": int(x.dtype)})
    beside = make.integers([-1, *[1] * (rank - 2)])
    return make("Add", [make("Mul", [value, make("Reshape", [scale, beside])]), make("Reshape", [bias, beside])])


def _shape_of(x: ir.Value, make: Maker) -> ir.Value:
    """Return the shape: a constant where at most one axis beside the batch is dynamic."""
    known = [size if isinstance(size, int) else -1 for size in (x.shape or ())[1:]]
    return make.integers([0, *known]) if known.count(-1) <= 1 else make("Shape", [x])
