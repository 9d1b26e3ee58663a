"""Carry a plan out on an ONNX model: new initializers, no folded BatchNorm, nothing that only a folded one read."""

from __future__ import annotations

import onnx_ir as ir

from exporter.graph.algebra import with_input_of_ones
from exporter.graph.onnx.editing import ModelEditor
from exporter.graph.onnx.ones import append_ones_
from exporter.graph.onnx.products import Site
from exporter.graph.onnx.reading import Reading
from exporter.graph.planning import Copy, NewNumbers, Plan

__all__ = ["folded_model"]


def folded_model(reading: Reading, plan: Plan) -> ir.Model:
    """Return the model of ``reading``, changed in place, with ``plan`` done."""
    editor = ModelEditor(reading.model)
    sites, nodes = dict(reading.sites), dict(reading.nodes)
    for copied in plan.copies:
        _copy_(editor, sites, nodes, copied)
    for new in plan.numbers:
        _write_(editor, sites[new.operator], new)
    for name, value in plan.bypasses:
        editor.bypass_(name, value)
    return reading.model


def _copy_(editor: ModelEditor, sites: dict[str, Site], nodes: dict[str, tuple[ir.Node, ...]], copied: Copy) -> None:
    """Make an operator twice, node by node, and let some of its readers read the copy."""
    given = nodes[copied.operator]
    made = editor.copy_(given, copied.operator, copied.name)
    nodes[copied.name] = made
    if copied.operator in sites:
        site, twin = sites[copied.operator], dict(zip(given, made, strict=True))
        bias_node = None if site.bias_node is None else twin[site.bias_node]
        sites[copied.name] = Site(twin[site.node], site.weight, bias_node, site.bias, site.bias_shape, site.dtype)
    for reader in copied.readers:
        for node in nodes[reader]:
            editor.redirect_(node, copied.operator, copied.name)


def _write_(editor: ModelEditor, site: Site, new: NewNumbers) -> None:
    node, weight = site.node, new.given
    if new.ones is not None:
        groups, is_transposed = node.attributes.get_int("group", 1), node.op_type == "ConvTranspose"
        weight = with_input_of_ones(new.weight, new.ones, groups, is_transposed=is_transposed)
        append_ones_(editor, node, groups, site.dtype)
    editor.set_numbers_(node, site.weight, weight, site.dtype)
    if new.bias is not None:
        bias = new.bias.reshape(site.bias_shape)
        if site.bias_node is not None:
            editor.set_numbers_(site.bias_node, site.bias, bias, site.dtype)
        else:
            editor.add_sum_behind_(editor.value(new.operator), editor.add_initializer_(f"{new.operator}.bias", bias, site.dtype))
    if new.border is not None:
        editor.add_sum_behind_(editor.value(new.operator), editor.add_initializer_(f"{new.operator}.border", new.border, site.dtype))
