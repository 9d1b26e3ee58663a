"""A convolution that reads one more channel in each group: ones, of the shape of one channel of its data, whatever the sizes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporter.graph.onnx.editing import ModelEditor

__all__ = ["append_ones_"]

_SLICE_HAS_INPUTS = 10
"""The opset from which on a slice takes its bounds as inputs."""

_END = 2**31 - 1


def append_ones_(editor: ModelEditor, product: ir.Node, groups: int, dtype: str) -> None:
    """Let ``product`` read its data with a channel of ones behind those of each group.

    Args:
        editor: of the model that the convolution stands in.
        product: a convolution, also a transposed one.
        groups: its number of groups.
        dtype: of its data.
    """
    data = product.inputs[0]
    if data is None:
        raise TypeError("a convolution without data")
    name = f"{data.name}_and_ones"
    joined = _by_group(editor, product, data, groups, name) if groups > 1 else data
    axis = 2 if groups > 1 else 1
    channel = _sliced(editor, product, joined, axis, 0, 1, f"{name}_channel")
    ones = _ones(editor, product, editor.insert_(product, "Shape", [channel], f"{name}_shape"), dtype, name)
    joined = editor.insert_(product, "Concat", [joined, ones], name, {"axis": ir.AttrInt64("axis", axis)})
    product.replace_input_with(0, _ungrouped(editor, product, data, joined, name) if groups > 1 else joined)


def _by_group(editor: ModelEditor, product: ir.Node, data: ir.Value, groups: int, name: str) -> ir.Value:
    """Return the data as (images, groups, channels of a group, places)."""
    weight = product.inputs[1]
    channels = _channels_of_group(product, weight, groups)
    return editor.insert_(product, "Reshape", [data, editor.add_integers_(f"{name}_groups", 0, groups, channels, -1)], f"{name}_by_group")


def _ungrouped(editor: ModelEditor, product: ir.Node, data: ir.Value, joined: ir.Value, name: str) -> ir.Value:
    """Return data by group as (images, channels, ...) with the places of ``data``."""
    shape = editor.insert_(product, "Shape", [data], f"{name}_places")
    images = _sliced(editor, product, shape, 0, 0, 1, f"{name}_images")
    places = _sliced(editor, product, shape, 0, 2, _END, f"{name}_size")
    target = editor.insert_(
        product, "Concat", [images, editor.add_integers_(f"{name}_channels", -1), places], f"{name}_target", {"axis": ir.AttrInt64("axis", 0)}
    )
    return editor.insert_(product, "Reshape", [joined, target], f"{name}_flat")


def _channels_of_group(product: ir.Node, weight: ir.Value | None, groups: int) -> int:
    shape = None if weight is None else weight.shape
    if shape is None or not isinstance(shape[0], int) or not isinstance(shape[1], int):
        raise TypeError("a convolution without a weight of a known shape")
    return shape[0] // groups if product.op_type == "ConvTranspose" else shape[1]


def _sliced(editor: ModelEditor, product: ir.Node, data: ir.Value, axis: int, start: int, end: int, name: str) -> ir.Value:
    bounds = {"starts": start, "ends": end, "axes": axis}
    if editor.opset < _SLICE_HAS_INPUTS:
        return editor.insert_(product, "Slice", [data], name, {key: ir.AttrInt64s(key, [number]) for key, number in bounds.items()})
    return editor.insert_(product, "Slice", [data, *(editor.add_integers_(f"{name}_{key}", number) for key, number in bounds.items())], name)


def _ones(editor: ModelEditor, product: ir.Node, shape: ir.Value, dtype: str, name: str) -> ir.Value:
    one = ir.Tensor(np.ones(1, dtype="float32" if dtype == "bfloat16" else dtype))
    ones = editor.insert_(product, "ConstantOfShape", [shape], f"{name}_ones", {"value": ir.AttrTensor("value", one)})
    if dtype != "bfloat16":  # which ConstantOfShape makes in the newest opsets only
        return ones
    return editor.insert_(product, "Cast", [ones], f"{name}_cast", {"to": ir.AttrInt64("to", int(ir.DataType.BFLOAT16))})
