"""``Pad``: since opset 18 the padding may be given for some axes; before, for all."""

from __future__ import annotations

import onnx_ir as ir

from exporter.onnx_export.lowering.making import Maker, NoFormError, integers_of, rank_of

__all__ = ["pad"]

_AXES = 3


def pad(node: ir.Node, make: Maker, opset: int) -> None:  # noqa: ARG001 - the signature of a rule
    """Write the padding for all axes: ``(begin of each axis, end of each axis)``, zero where none was named."""
    x, pads, axes_input = node.inputs[0], node.inputs[1], node.inputs[_AXES] if len(node.inputs) > _AXES else None
    if x is None or pads is None or axes_input is None:
        return
    rank = rank_of(x)
    axes = integers_of(axes_input)
    if axes is None:
        raise NoFormError("computes its axes", "pad axes that are written into the model", at_run_time=True)
    places = [axis % rank for axis in axes]
    numbers = integers_of(pads)
    if numbers is not None:
        full = [0] * (2 * rank)
        for number, axis in enumerate(places):
            full[axis], full[rank + axis] = numbers[number], numbers[len(places) + number]
        whole = make.integers(full)
    else:
        pieces = [make.integers([0])] * (2 * rank)
        for number, axis in enumerate(places):
            for at, offset in ((axis, number), (rank + axis, len(places) + number)):
                pieces[at] = make("Slice", [pads, make.integers([offset]), make.integers([offset + 1])])
        whole = make("Concat", pieces, {"axis": 0})
    node.replace_input_with(1, whole)
    node.resize_inputs(_AXES)
