"""Carry a plan out on a copy of an exported program; the original keeps its graph and its tensors."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram

from exporter.graph.aten.calls import arguments_of
from exporter.graph.aten.editing import ProgramEditor
from exporter.graph.planning import NewNumbers, Plan

__all__ = ["folded_program"]


def folded_program(program: ExportedProgram, plan: Plan) -> ExportedProgram:
    """Return a program with ``plan`` done: new weights, no folded BatchNorm, nothing that only a folded one read.

    Tensors that the plan does not touch are shared with ``program``.
    """
    editor = ProgramEditor(program)
    for new in plan.numbers:
        _write_(editor, new)
    for name, value in plan.bypasses:
        editor.bypass_(name, value)
    return editor.finished()


def _write_(editor: ProgramEditor, new: NewNumbers) -> None:
    product = editor.nodes[new.operator]
    call = arguments_of(product)
    weight: torch.fx.Node = call["weight"] if "weight" in call else call["mat2"]
    bias = call["self"] if "mat2" in call else call["bias"]
    editor.set_numbers_(product, weight, new.weight)
    if new.bias is None:
        return
    if bias is not None:
        editor.set_numbers_(product, bias, new.bias)
        return
    stem = (editor.target_of(weight)).rpartition(".")[0]
    created = editor.add_constant_(weight, new.bias, f"{stem}.bias" if stem else "bias")
    product.args = (*product.args[:2], created, *product.args[3:])
    product.kwargs = {name: value for name, value in product.kwargs.items() if name != "bias"}
