"""Passes over the exported model that change no number of the function it computes.

computed zero biases   a convolution without bias gets one that is computed at run time; for conv3d of the wrong shape. They go.
constants              shape arithmetic on known shapes becomes constants; BatchNorms are never touched by it.
indices                what is gathered from constants at constant places becomes a constant, such as the biases of an attention.
casts                  a cast to the dtype that a value has goes, also where the dtype is that of another value.
reshapes               a target shape that is computed but known up to one axis becomes a constant; of views in a row one reshape stays.
transpositions         of those in a row one stays, and none that moves no axis.
names and metadata     each node keeps the name of its module as ``exporter.module``; traces with paths of this machine go.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules.common import materialize_reshape_shape_rule, no_op_cast_rule

from exporter.onnx_export.reshapes import merge_reshapes_
from exporter.onnx_export.transposes import merge_transposes_

__all__ = ["tidy_"]

_BIAS_POSITION = {"Conv": 2, "ConvTranspose": 2}
_GATHERS = {"Gather", "GatherND"}
_INDEX_ARITHMETIC = {"Expand", "Max", "Min", "Shape", "Unsqueeze"}
"""What torch puts between an index and its gather."""


def tidy_(model: ir.Model, *, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Run all passes over ``model``, in place, and call its inputs and outputs as told."""
    common.InlinePass()(model)
    _drop_computed_zero_biases_(model)
    optimizer.fold_constants(model, should_fold=_should_fold)
    rewrite(model, [materialize_reshape_shape_rule, no_op_cast_rule])
    _merge_views_(model)
    modules = {node: _module_of(node) for node in model.graph.all_nodes()}
    common.ClearMetadataAndDocStringPass()(model)
    for node, module in modules.items():
        if module:
            node.metadata_props["exporter.module"] = module
    model.graph.metadata_props.clear()
    for step in (
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        common.OutputFixPass(),
        common.TopologicalSortPass(),
    ):
        step(model)
    for values, names in ((model.graph.inputs, inputs), (model.graph.outputs, outputs)):  # an input that is also an output got a new name
        for value, name in zip(values, names, strict=True):
            value.name = name
    common.NameFixPass()(model)


def _merge_views_(model: ir.Model) -> None:
    """Merge views, transpositions and casts, with the shapes and dtypes that they have by ONNX's inference; the file keeps those that it has."""
    values = [value for node in model.graph.all_nodes() for value in node.outputs]
    given = [(value, value.shape, value.type) for value in values if value.shape is None or value.type is None]
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    _drop_casts_(model)
    while any([merge_reshapes_(model), merge_transposes_(model)]):
        pass
    for value, shape, kind in given:
        value.shape, value.type = shape, kind


def _drop_casts_(model: ir.Model) -> None:
    """Leave out the casts of a value to the dtype of another that is its own."""
    for node in model.graph.all_nodes():
        if node.op_type != "CastLike" or node.domain != "" or node.outputs[0].is_graph_output():
            continue
        value, like = node.inputs
        if value is not None and like is not None and value.dtype is not None and value.dtype == like.dtype:
            ir.convenience.replace_all_uses_with(node.outputs[0], value)


def _should_fold(node: ir.Node) -> bool | None:
    """Tell for a node whose inputs are all constants: yes, no, or by the size of its inputs; a large result is never stored."""
    if node.op_type == "BatchNormalization":
        return False
    if node.op_type in _INDEX_ARITHMETIC:
        first = node.inputs[0]
        return True if first is not None and first.dtype is not None and first.dtype.is_integer() else None
    return True if node.op_type in _GATHERS else None


def _drop_computed_zero_biases_(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        position = _BIAS_POSITION.get(node.op_type)
        if position is None or len(node.inputs) <= position:
            continue
        bias = node.inputs[position]
        if bias is not None and _is_expanded_zero(bias):
            node.replace_input_with(position, None)


def _is_expanded_zero(value: ir.Value) -> bool:
    expand = value.producer()
    if expand is None or expand.op_type != "Expand":
        return False
    source = expand.inputs[0]
    while source is not None and (producer := source.producer()) is not None and producer.op_type in {"CastLike", "Cast"}:
        source = producer.inputs[0]
    constant = ir.convenience.get_const_tensor(source) if source is not None else None
    return constant is not None and constant.size == 1 and not constant.numpy().any()


def _module_of(node: ir.Node) -> str:
    """Return the name of the module that a node came from: the last dotted name among the scopes that torch noted."""
    noted = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if not noted:
        return ""
    scopes = ast.literal_eval(noted)
    return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 else ""
