"""Carry a plan out on an ONNX model: new initializers, no folded BatchNorm, nothing that only a folded one read."""

from __future__ import annotations

import onnx_ir as ir

from exporter.graph.onnx.editing import ModelEditor
from exporter.graph.onnx.reading import Reading
from exporter.graph.planning import NewNumbers, Plan

__all__ = ["folded_model"]


def folded_model(reading: Reading, plan: Plan) -> ir.Model:
    """Return the model of ``reading``, changed in place, with ``plan`` done."""
    editor = ModelEditor(reading.model)
    for new in plan.numbers:
        _write_(editor, reading, new)
    for name, value in plan.bypasses:
        editor.bypass_(name, value)
    return reading.model


def _write_(editor: ModelEditor, reading: Reading, new: NewNumbers) -> None:
    site = reading.sites[new.operator]
    node = editor.node(site.node)
    dtype = reading.dtypes[new.operator]
    editor.set_numbers_(node, site.weight, new.weight, dtype)
    if new.bias is None:
        return
    bias = new.bias.reshape(site.bias_shape)
    if site.bias_node is not None:
        editor.set_numbers_(editor.node(site.bias_node), site.bias, bias, dtype)
        return
    created = editor.add_initializer_(f"{node.outputs[0].name}.bias", bias, dtype)
    editor.add_behind_(node.outputs[0], "Add", created)
