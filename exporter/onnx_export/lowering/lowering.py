"""The order of the work, and what is refused.

1. An operator that opset 17 lacks and ONNX defines by others is replaced by that definition (``bodies.py``).
2. A node with a rule of its own is brought into the form of opset 17 (``rules/``).
3. Every node must then have a form in opset 17 by the operators' own schemas (``form.py``); attributes that only state their default go.
4. Opset and IR version are set, and what IR version 8 cannot say, metadata of nodes and values, goes.

Operators of other domains are left as they are.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from exporter.errors import ExportError
from exporter.onnx_export.lowering.bodies import expand_
from exporter.onnx_export.lowering.form import fit_
from exporter.onnx_export.lowering.making import OPSET, Maker, NoFormError
from exporter.onnx_export.lowering.rules import RULES

__all__ = ["lower_"]

IR_VERSION = 8
"""The newest that a reader of opset 17 knows."""
_MODULE = "exporter.module"
_WAYS_OUT = "TensorRT 10 or newer reads opset 20 and more"


def lower_(model: ir.Model) -> None:
    """Bring ``model`` into opset 17 and IR version 8, in place; a model of opset 17 or older keeps its opset.

    Raises:
        ExportError: an operator has no form in opset 17 (E451), or its form depends on what only a run knows (E452). The model
            is then half changed and of no use.
    """
    opset = model.opset_imports.get("", 0)
    if opset > OPSET:
        common.InlinePass()(model)
        common.ShapeInferencePass()(model)
        own = set(model.graph.all_nodes())
        is_expanded = expand_(model, opset, own=frozenset(RULES))
        if is_expanded:  # the definitions compute shapes; what is known of them becomes constants, and nothing of the model's own does
            optimizer.fold_constants(model, should_fold=lambda node: False if node in own else None)
        for node in list(model.graph.all_nodes()):
            if not node.domain:
                _lower_node_(node, opset, model.graph)
        model.opset_imports[""] = OPSET
        model.graph.opset_imports[""] = OPSET
    model.ir_version = min(model.ir_version, IR_VERSION)
    _forget_what_is_newer_(model)
    for step in (common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass(), common.TopologicalSortPass(), common.NameFixPass()):
        step(model)


def _lower_node_(node: ir.Node, opset: int, main: ir.Graph) -> None:
    make = Maker(node, main)
    rule = RULES.get(node.op_type)
    try:
        value = rule(node, make, opset) if rule is not None else None
        for new in make.nodes:
            fit_(new, OPSET)
        if value is None:
            fit_(node, opset)
    except NoFormError as err:
        raise _refusal(node, opset, err) from err
    _take_place_(node, make.nodes, value)


def _take_place_(node: ir.Node, new: list[ir.Node], value: ir.Value | None) -> None:
    """Put new nodes before ``node``, and let ``value``, where there is one, stand for its output."""
    graph = node.graph
    if graph is None:
        return
    for made in new:
        made.metadata_props.update(node.metadata_props)
    if value is None:
        graph.insert_before(node, new)
    else:
        ir.convenience.replace_nodes_and_values(graph, node, [node], new, [node.outputs[0]], [value])


def _refusal(node: ir.Node, opset: int, err: NoFormError) -> ExportError:
    facts = {"operator": f"{node.op_type} of opset {opset}", "node": node.name or f"with the output {node.outputs[0].name}"}
    if module := node.metadata_props.get(_MODULE):
        facts["module"] = module
    facts["found"] = f"it {err.reason}"
    advice = f"{err.advice}; or: {_WAYS_OUT}" if err.advice else _WAYS_OUT
    if err.at_run_time:
        return ExportError("E452", f"an operator's form in opset {OPSET} depends on what only a run knows", facts=facts, help=advice)
    return ExportError("E451", f"an operator has no form in opset {OPSET}", facts=facts, help=advice)


def _forget_what_is_newer_(model: ir.Model) -> None:
    """Remove metadata of graph, nodes and values; the name of a node's module goes into its documentation."""
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        if (module := node.metadata_props.get(_MODULE)) and not node.doc_string:
            node.doc_string = f"{_MODULE}: {module}"
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
