"""``GridSample``, whose modes were renamed in opset 20, and ``DFT``, whose axis became an input then."""

from __future__ import annotations

import onnx_ir as ir

from exporter.onnx_export.lowering.making import Maker, NoFormError, integers_of, rank_of

__all__ = ["dft", "grid_sample"]

_NEW_FORM = 20
_OLD_MODES = {"linear": "bilinear", "cubic": "bicubic", "nearest": "nearest"}
_IMAGE_RANK = 4
_AXIS = 2


def grid_sample(node: ir.Node, make: Maker, opset: int) -> None:  # noqa: ARG001 - the signature of a rule
    """Give the mode its older name; before opset 20 only images are sampled."""
    x = node.inputs[0]
    if opset < _NEW_FORM or x is None:
        return
    if rank_of(x) != _IMAGE_RANK:
        raise NoFormError("samples something else than images of two axes", "sample slice by slice")
    node.attributes["mode"] = ir.AttrString("mode", _OLD_MODES[node.attributes.get_string("mode", "linear")])


def dft(node: ir.Node, make: Maker, opset: int) -> None:  # noqa: ARG001 - the signature of a rule
    """Write the axis as an attribute."""
    x = node.inputs[0]
    if opset < _NEW_FORM or x is None:
        return
    given = node.inputs[_AXIS] if len(node.inputs) > _AXIS else None
    axis = integers_of(given) if given is not None else [-2]
    if axis is None:
        raise NoFormError("computes its axis", "write the axis into the model", at_run_time=True)
    node.attributes["axis"] = ir.AttrInt64("axis", axis[0] % rank_of(x))
    node.resize_inputs(min(len(node.inputs), _AXIS))
