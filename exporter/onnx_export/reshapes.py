"""Views in a row become one, and those that do nothing, or that the next one undoes, are left out.

A view gives the same numbers in the same order another shape: Reshape, Flatten, Squeeze, Unsqueeze. A fold of a BatchNorm between two of
them leaves them in a row: (batch, tokens, channels) to (all, channels) and back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

__all__ = ["is_view", "keeps_shape", "merge_reshapes_", "target_of"]

_VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}


def merge_reshapes_(model: ir.Model) -> bool:
    """Let each view read what stands before the views in a row with it, and leave it out where it keeps the shape.

    Only where the shape that it makes is known up to one axis, without a zero, which would mean the axis of the tensor that is read. What
    nobody reads any more stays, for the pass that removes it.

    Returns:
        Whether anything was changed.
    """
    is_changed = False
    for node in list(model.graph.all_nodes()):
        target = target_of(node)
        if target is None or (not node.outputs[0].uses() and not node.outputs[0].is_graph_output()):
            continue
        source, is_merged = node.inputs[0], False
        while source is not None and (before := source.producer()) is not None and is_view(before):
            source, is_merged = before.inputs[0], True
        if source is not None and keeps_shape(source, target) and not node.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(node.outputs[0], source)
            is_changed = True
        elif is_merged:
            _reshape_(node, source, target)
            is_changed = True
    return is_changed


def is_view(node: ir.Node) -> bool:
    """Return whether a node gives the same numbers in the same order another shape."""
    return node.op_type in _VIEWS and node.domain == ""


def target_of(node: ir.Node) -> tuple[int, ...] | None:
    """Return the shape that a view makes, with -1 for one axis that is not known; None where more are not, or one may be of no size."""
    if not is_view(node):
        return None
    if node.op_type == "Reshape":
        shape = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
        target = tuple(int(size) for size in shape.numpy()) if shape is not None else ()
    else:
        sizes = node.outputs[0].shape
        target = tuple(size if isinstance(size, int) else -1 for size in sizes) if sizes is not None else ()
    return target if target and 0 not in target and target.count(-1) <= 1 else None


def keeps_shape(value: ir.Value, target: Sequence[int]) -> bool:
    """Whether all axes but one certainly keep their size, with which the last one keeps it too."""
    if value.shape is None or len(value.shape) != len(target):
        return False
    return sum(not isinstance(size, int) or size != wanted for size, wanted in zip(value.shape, target, strict=True)) <= 1


def _reshape_(node: ir.Node, source: ir.Value | None, target: tuple[int, ...]) -> None:
    """Let a view be a Reshape of ``source``; one that is a Reshape already keeps its target."""
    node.replace_input_with(0, source)
    if node.op_type == "Reshape":
        return
    shape = ir.node("Constant", [], {"value": ir.tensor(np.array(target, dtype=np.int64))})
    if node.graph is not None:
        node.graph.insert_before(node, shape)
    node.op_type = "Reshape"
    node.attributes.clear()
    node.resize_inputs(2)
    node.replace_input_with(1, shape.outputs[0])
