"""Weights, values and the casts at the borders.

A node computes in half precision unless it is an island. A weight is rounded once, from the float32 of the folded graph. Where a value
crosses a border there is one Cast, beside the value's producer, for all who read it; a node between islands that only moves values is
drawn into them, so that no value is cast down and up again. Inputs and outputs of the model stay float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from exporter.errors import ConfigError
from exporter.onnx_export.precision.islands import changeable_inputs, find_islands, floats_of, is_float

__all__ = ["FIRST_BFLOAT16", "check_patterns", "halve_"]

_DTYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
FIRST_BFLOAT16 = 22
"""The opset in which convolution and most others take bfloat16."""
_MOVERS = {
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip


def halve_(model: ir.Model, precision: str, patterns: Sequence[str] = (), kept: AbstractSet[str] = frozenset()) -> dict[str, str]:
    """Change ``model`` from float32 to ``precision``, in place; return node name -> why it stays in float32.

    Args:
        model: in float32, functions inlined.
        precision: ``float16`` or ``bfloat16``.
        patterns: module or node names that stay in float32, in the way of ``fnmatch``.
        kept: names of further nodes that stay in float32.

    Raises:
        ConfigError: the opset has no bfloat16 for most operators (E455), or a pattern matches no module and no node (E456).
    """
    opset = model.opset_imports.get("", 0)
    if precision == "bfloat16" and opset < FIRST_BFLOAT16:
        facts = {"found": f"opset {opset}", "expected": f"{FIRST_BFLOAT16} or newer"}
        raise ConfigError("E455", "convolutions and most operators take bfloat16 only from opset 22 on", facts=facts, help="[onnx] opset = 22")
    common.ShapeInferencePass()(model)  # values from within torch's own functions come without their dtypes
    islands = find_islands(model, precision, patterns, kept)
    check_patterns(model, patterns)
    _draw_in_movers(model, islands)
    work = _Halving(model, _DTYPES[precision], opset, islands)
    work.run()
    return {node.name or "": reason for node, reason in islands.items()}


def check_patterns(model: ir.Model, patterns: Sequence[str]) -> None:
    """Raise unless each pattern matches the name of a module or of a node.

    Raises:
        ConfigError: one matches nothing (E456).
    """
    import difflib
    import fnmatch

    names = sorted({name for node in model.graph for name in (node.metadata_props.get("exporter.module", ""), node.name or "") if name})
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3)
            facts = {"at": "onnx -> float32", "found": pattern, "expected": "a pattern of module names or node names"}
            raise ConfigError(
                "E456",
                "a pattern of what stays in float32 matches nothing",
                facts=facts,
                help=f"did you mean {' or '.join(near)}?" if near else "exporter export-onnx without it, and look at the nodes' names",
            )


def _draw_in_movers(model: ir.Model, islands: dict[ir.Node, str]) -> None:
    """Let a node that only moves values stay in float32 where its values come from islands, and all its readers are islands."""
    has_changed = True
    while has_changed:
        has_changed = False
        for node in model.graph:
            if node in islands or node.op_type not in _MOVERS or not is_float(node.outputs[0]):
                continue
            comes = [value.producer() in islands for value in node.inputs if is_float(value) and value is not None and value.producer() is not None]
            goes = [reader in islands for output in node.outputs for reader in output.consumers()]
            if comes and goes and all(comes) and all(goes) and not any(output.is_graph_output() for output in node.outputs):
                islands[node] = "between islands"
                has_changed = True


class _Halving:
    """The change of one model."""

    def __init__(self, model: ir.Model, dtype: ir.DataType, opset: int, islands: Mapping[ir.Node, str]) -> None:
        self._model, self._graph, self._dtype, self._opset, self._islands = model, model.graph, dtype, opset, islands
        self._constants: dict[ir.Value, ir.Value] = {}
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self) -> None:
        """Change every node that is no island, then put casts where a precision meets the other one."""
        nodes = list(self._graph)
        followed = {node: changeable_inputs(node, self._opset) for node in nodes if node not in self._islands and not node.domain}
        halves = {node for node in followed if any(is_float(value) for value in (*node.inputs, *node.outputs))}
        for node in nodes:
            if node in halves:
                self._halve_outputs_(node)
        for node in nodes:
            for position, value in enumerate(node.inputs):
                if value is None:
                    continue
                if node in halves and position in followed[node]:
                    node.replace_input_with(position, self._as(value, self._dtype))
                elif node not in halves and value.dtype == self._dtype:
                    node.replace_input_with(position, self._as(value, ir.DataType.FLOAT))
            for inner in _nodes_inside(node):
                for position, value in enumerate(inner.inputs):
                    if value is not None and value.dtype == self._dtype:
                        inner.replace_input_with(position, self._as(value, ir.DataType.FLOAT))
        self._remove_casts_that_do_nothing_()
        self._widen_outputs_()

    def _halve_outputs_(self, node: ir.Node) -> None:
        if node.op_type == "Cast" and node.attributes.get_int("to") == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(self._dtype))
        for value in node.outputs:
            if is_float(value):
                value.type = ir.TensorType(self._dtype)

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return ``value`` in ``dtype``: itself, a rounded constant, or the output of the one Cast for all readers."""
        if value.dtype == dtype:
            return value
        numbers = floats_of(value)
        if numbers is not None and dtype == self._dtype:
            return self._rounded(value, numbers)
        if (value, dtype) not in self._casts:
            cast = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{value.name}/to_{dtype.name.lower()}")
            made = cast.outputs[0]
            made.name, made.type, made.shape = f"{value.name}/{dtype.name.lower()}", ir.TensorType(dtype), value.shape
            producer = value.producer()
            if producer is None or producer.graph is not self._graph:
                self._graph.insert_before(self._graph[0], cast)
            else:
                cast.metadata_props.update(producer.metadata_props)
                self._graph.insert_after(producer, cast)
            self._casts[value, dtype] = made
        return self._casts[value, dtype]

    def _rounded(self, value: ir.Value, numbers: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> ir.Value:
        if value not in self._constants:
            name = f"{value.name}/{self._dtype.name.lower()}"
            tensor = ir.tensor(np.asarray(numbers).astype(self._dtype.numpy()), name=name)
            made = ir.Value(name=name, shape=ir.Shape(list(numbers.shape)), type=ir.TensorType(self._dtype), const_value=tensor)
            self._graph.register_initializer(made)
            self._constants[value] = made
        return self._constants[value]

    def _remove_casts_that_do_nothing_(self) -> None:
        for node in list(self._graph):
            if node.op_type != "Cast" or node.domain or node.inputs[0] is None or node.outputs[0].is_graph_output():
                continue
            if node.inputs[0].dtype == node.outputs[0].dtype:
                ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
                self._graph.remove(node, safe=True)

    def _widen_outputs_(self) -> None:
        """Give every output of the model its float32 back, under its own name."""
        for index, value in enumerate(self._graph.outputs):
            if value.dtype != self._dtype:
                continue
            name = value.name
            wide = self._as(value, ir.DataType.FLOAT)
            self._graph.outputs[index] = wide
            value.name, wide.name = f"{name}/{self._dtype.name.lower()}", name


def _nodes_inside(node: ir.Node) -> list[ir.Node]:
    """Return the nodes of the node's subgraphs, at every depth."""
    graphs = [
        graph
        for attribute in node.attributes.values()
        for graph in (
            [attribute.as_graph()]
            if attribute.type == ir.AttributeType.GRAPH
            else attribute.as_graphs()
            if attribute.type == ir.AttributeType.GRAPHS
            else []
        )
    ]
    return [inner for graph in graphs for inner in graph.all_nodes()]
