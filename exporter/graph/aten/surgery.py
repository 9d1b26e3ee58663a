"""Carry a plan out on a copy of an exported program; the original keeps its graph and its tensors."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram

from exporter.graph.algebra import Float64, with_input_of_ones
from exporter.graph.aten.calls import arguments_of, operator_kind
from exporter.graph.aten.editing import ProgramEditor
from exporter.graph.aten.products import MATRIX_PRODUCTS, numbers_read_by
from exporter.graph.planning import NewNumbers, Plan

__all__ = ["folded_program"]

_ATEN = torch.ops.aten


def folded_program(program: ExportedProgram, plan: Plan) -> ExportedProgram:
    """Return a program with ``plan`` done: new weights, no folded BatchNorm, nothing that only a folded one read.

    Tensors that the plan does not touch are shared with ``program``.
    """
    editor = ProgramEditor(program)
    for copied in plan.copies:
        editor.copy_(copied.operator, copied.name, copied.readers)
    for new in plan.numbers:
        _write_(editor, new)
    for name, value in plan.bypasses:
        editor.bypass_(name, value)
    return editor.finished()


def _write_(editor: ProgramEditor, new: NewNumbers) -> None:
    product = editor.nodes[new.operator]
    call = arguments_of(product)
    weight, bias = numbers_read_by(product, editor.constants)
    like = weight if weight is not None else call["running_mean"]
    stem = editor.target_of(like).rpartition(".")[0]
    if new.bias is not None:
        _write_bias_(editor, product, bias, like, new.bias, _name_in(stem, "bias"))
    if new.border is not None:
        border = editor.add_constant_(like, new.border, _name_in(stem, "border"))
        editor.append_(product, _ATEN.add.Tensor, (product, border))
    numbers = new.given
    if new.ones is not None:
        groups = int(call["groups"])
        numbers = with_input_of_ones(new.weight, new.ones, groups, is_transposed=_is_transposed(product))
        _append_ones_(editor, product, groups)
    if weight is None:
        _give_(product, 1, "weight", editor.add_constant_(like, numbers, _name_in(stem, "weight")))
    else:
        editor.set_numbers_(product, weight, numbers)


def _write_bias_(editor: ProgramEditor, product: torch.fx.Node, bias: torch.fx.Node | None, like: torch.fx.Node, numbers: Float64, name: str) -> None:
    if bias is not None:
        editor.set_numbers_(product, bias, numbers)
        return
    created = editor.add_constant_(like, numbers, name)
    if operator_kind(product) not in MATRIX_PRODUCTS:
        _give_(product, 2, "bias", created)
        return
    is_behind = product.args[1] is like
    added = created if is_behind else editor.insert_(product, _ATEN.unsqueeze.default, (created, -1))
    editor.append_(product, _ATEN.add.Tensor, (product, added))


def _give_(node: torch.fx.Node, position: int, name: str, value: torch.fx.Node) -> None:
    """Let a call read ``value`` as the argument that it lacked."""
    node.args = (*node.args[:position], value, *node.args[position + 1 :])
    node.kwargs = {key: given for key, given in node.kwargs.items() if key != name}


def _append_ones_(editor: ProgramEditor, product: torch.fx.Node, groups: int) -> None:
    """Let ``product`` read its data with a channel of ones behind those of each group."""
    data = product.args[0]
    axis = 1
    if groups > 1:
        data, axis = editor.insert_(product, _ATEN.unflatten.int, (data, 1, [groups, -1])), 2
    ones = editor.insert_(product, _ATEN.ones_like.default, (editor.insert_(product, _ATEN.slice.Tensor, (data, axis, 0, 1)),))
    data = editor.insert_(product, _ATEN.cat.default, ([data, ones], axis))
    if groups > 1:
        data = editor.insert_(product, _ATEN.flatten.using_ints, (data, 1, 2))
    product.args = (data, *product.args[1:])


def _is_transposed(product: torch.fx.Node) -> bool:
    return operator_kind(product).startswith("conv_transpose") or bool(arguments_of(product).get("transposed", False))


def _name_in(stem: str, name: str) -> str:
    return f"{stem}.{name}" if stem else name
