"""Reshapes that do nothing, or that the next one undoes, are left out.

A fold of a BatchNorm between two reshapes leaves them in a row: (batch, tokens, channels) to (all, channels) and back.
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["merge_reshapes_"]


def merge_reshapes_(model: ir.Model) -> None:
    """Let each reshape read what stands before the reshapes in a row with it, and leave it out where it keeps the shape.

    Only where the target shape is a constant without a zero, which would mean the axis of the tensor that is read. What nobody reads
    any more stays, for the pass that removes it.
    """
    for node in list(model.graph.all_nodes()):
        target = _target_of(node)
        if target is None:
            continue
        while (source := node.inputs[0]) is not None and (before := source.producer()) is not None and _is_reshape(before):
            node.replace_input_with(0, before.inputs[0])
        if source is not None and _keeps_shape(source, target) and not node.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(node.outputs[0], source)


def _is_reshape(node: ir.Node) -> bool:
    return node.op_type == "Reshape" and node.domain == ""


def _target_of(node: ir.Node) -> tuple[int, ...] | None:
    shape = ir.convenience.get_const_tensor(node.inputs[1]) if _is_reshape(node) and node.inputs[1] is not None else None
    target = tuple(int(size) for size in shape.numpy()) if shape is not None else ()
    return target if target and 0 not in target else None


def _keeps_shape(value: ir.Value, target: tuple[int, ...]) -> bool:
    """Whether all axes but one certainly keep their size, with which the last one keeps it too."""
    if value.shape is None or len(value.shape) != len(target):
        return False
    return sum(not isinstance(size, int) or size != wanted for size, wanted in zip(value.shape, target, strict=True)) <= 1
