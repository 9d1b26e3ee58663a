"""Transpositions in a row become one, and those that do nothing are left out.

torch writes the keys of an attention with their first axes made one, transposed, and taken apart again: (batch, heads, tokens, features) to
(batch heads, tokens, features), turned, and to (batch, heads, features, tokens). That is one transposition.

A transposition between two views keeps them from becoming one. Axes that the second puts in are put in before, so that only one is left, and
what multiplies the result reads a transposition, which runtimes make part of the product.
"""

from __future__ import annotations

import onnx_ir as ir

from exporter.onnx_export.reshapes import is_view, keeps_shape, target_of

__all__ = ["merge_transposes_"]


def merge_transposes_(model: ir.Model) -> bool:
    """Let each transposition read what stands before those in a row with it, and leave it out where it moves no axis.

    What nobody reads any more stays, for the pass that removes it.

    Returns:
        Whether anything was changed.
    """
    is_changed = False
    for node in list(model.graph.all_nodes()):
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            continue
        is_changed = _turned_in_between_(node) or _put_in_before_(node) or is_changed
        order, source = _order_of(node), node.inputs[0] if node.inputs else None
        if order is None or source is None:
            continue
        before = source.producer()
        if before is not None and (first := _order_of(before)) is not None and (given := before.inputs[0]) is not None:
            source, order = given, tuple(first[axis] for axis in order)
            _transpose_(node, source, order)
            is_changed = True
        if order == tuple(range(len(order))) and not node.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(node.outputs[0], source)
            is_changed = True
    return is_changed


def _order_of(node: ir.Node) -> tuple[int, ...] | None:
    """Return the axes of the input in the order of the output; None for anything else, and where their number is not known."""
    if node.op_type != "Transpose" or node.domain != "":
        return None
    order = tuple(node.attributes.get_ints("perm", ()))
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    return order or (tuple(reversed(range(len(shape)))) if shape is not None else None)


def _turned_in_between_(last: ir.Node) -> bool:
    """Let the second of two views around a transposition be the transposition, where they make the first axes one and take them apart again."""
    target = target_of(last)
    turn = last.inputs[0].producer() if target is not None and last.inputs[0] is not None else None
    order = None if turn is None else _order_of(turn)
    first = turn.inputs[0].producer() if turn is not None and order is not None and turn.inputs[0] is not None else None
    if target is None or order is None or first is None or not is_view(first) or (middle := target_of(first)) is None:
        return False
    source = first.inputs[0]
    if source is None or source.shape is None or order[0] != 0 or len(source.shape) < len(middle):
        return False
    joined = len(source.shape) - len(middle) + 1  # so many axes become the first
    kept = tuple(source.shape)[joined:]
    if any(not isinstance(size, int) for size in kept) or kept != middle[1:]:
        return False
    whole = (*range(joined), *(joined - 1 + axis for axis in order[1:]))
    turned = ir.Value(shape=ir.Shape([source.shape[axis] for axis in whole]))
    if not keeps_shape(turned, target):
        return False
    _transpose_(last, source, whole)
    return True


def _put_in_before_(last: ir.Node) -> bool:
    """Let an Unsqueeze behind a view and a transposition that nothing else reads stand in front of the transposition."""
    turn = last.inputs[0].producer() if last.op_type == "Unsqueeze" and last.domain == "" and last.inputs[0] is not None else None
    order = None if turn is None else _order_of(turn)
    source = turn.inputs[0] if turn is not None and order is not None else None
    first = None if source is None else source.producer()
    if turn is None or order is None or source is None or source.shape is None or first is None or not is_view(first):
        return False
    given = ir.convenience.get_const_tensor(last.inputs[1]) if len(last.inputs) == 2 and last.inputs[1] is not None else None
    if given is None or last.graph is None or len(turn.outputs[0].uses()) != 1 or turn.outputs[0].is_graph_output():
        return False
    rank = len(order) + given.size
    added = {int(axis) % rank for axis in given.numpy()}
    kept = [axis for axis in range(rank) if axis not in added]
    whole = list(range(rank))
    for place, axis in zip(kept, order, strict=True):
        whole[place] = kept[axis]
    sizes = iter(source.shape)
    put_in = ir.node("Unsqueeze", [source, last.inputs[1]])
    put_in.outputs[0].shape = ir.Shape([1 if axis in added else next(sizes) for axis in range(rank)])
    put_in.outputs[0].type = source.type
    put_in.metadata_props.update(last.metadata_props)
    last.graph.insert_before(last, put_in)
    _transpose_(last, put_in.outputs[0], tuple(whole))
    return True


def _transpose_(node: ir.Node, source: ir.Value | None, order: tuple[int, ...]) -> None:
    """Let a node be a transposition of ``source``."""
    node.op_type = "Transpose"
    node.attributes.clear()
    node.attributes["perm"] = ir.AttrInt64s("perm", order)
    node.resize_inputs(1)
    node.replace_input_with(0, source)
