"""``Resize``: since opset 18 some axes may be named, the aspect ratio kept, and a filter against aliasing used.

Named axes are written out: factor 1 or the size as it is for the others. The filter and the kept ratio have no form in opset 17.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporter.onnx_export.lowering.making import Maker, NoFormError, constant_of, integers_of, rank_of

__all__ = ["resize"]

_ROI, _SCALES, _SIZES = 1, 2, 3


def resize(node: ir.Node, make: Maker, opset: int) -> None:  # noqa: ARG001 - the signature of a rule
    """Write factors or sizes for all axes."""
    x = node.inputs[0]
    sizes, scales = (node.inputs[place] if len(node.inputs) > place else None for place in (_SIZES, _SCALES))
    if sizes is not None and node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NoFormError("keeps the aspect ratio", "name the size that comes out")
    node.attributes.pop("keep_aspect_ratio_policy", None)
    axes_attribute = node.attributes.pop("axes", None)
    if axes_attribute is None or x is None:
        return
    rank = rank_of(x)
    axes = [axis % rank for axis in axes_attribute.as_ints()]
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize" and axes != list(range(rank)):
        raise NoFormError("crops some axes", "crop before the resizing")
    if sizes is not None:
        node.replace_input_with(_SIZES, _all_sizes(x, sizes, axes, rank, make))
    elif scales is not None:
        node.replace_input_with(_SCALES, _all_scales(scales, axes, rank, make))


def _all_scales(scales: ir.Value, axes: list[int], rank: int, make: Maker) -> ir.Value:
    factors = constant_of(scales)
    if factors is not None:
        full = np.ones(rank, np.float32)
        full[axes] = factors
        return make.constant(full)
    pieces = [make.constant(np.ones(1, np.float32))] * rank
    for number, axis in enumerate(axes):
        pieces[axis] = make("Slice", [scales, make.integers([number]), make.integers([number + 1])])
    return make("Concat", pieces, {"axis": 0})


def _all_sizes(x: ir.Value, sizes: ir.Value, axes: list[int], rank: int, make: Maker) -> ir.Value:
    known: list[int | None] = [size if isinstance(size, int) else None for size in x.shape or ()]
    numbers = integers_of(sizes)
    for number, axis in enumerate(axes):
        known[axis] = None if numbers is None else numbers[number]
    if None not in known:
        return make.integers([size for size in known if size is not None])
    shape = make("Shape", [x]) if any(known[axis] is None for axis in range(rank) if axis not in axes) else None
    pieces = []
    for axis, size in enumerate(known):
        if size is not None:
            pieces.append(make.integers([size]))
        elif axis in axes:
            number = axes.index(axis)
            pieces.append(make("Slice", [sizes, make.integers([number]), make.integers([number + 1])]))
        else:
            pieces.append(make("Slice", [shape, make.integers([axis]), make.integers([axis + 1])]))
    return make("Concat", pieces, {"axis": 0})
