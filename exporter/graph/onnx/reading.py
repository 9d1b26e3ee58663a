"""Adapter: an ONNX model -> the abstract graph, and the numbers of its constants.

A value is known by its name, an operator by the name of its output; a node with several outputs is an operator for each of them.
What a subgraph reads from around it is read by the node that the subgraph belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporter.graph.abstract import AbstractGraph, BatchNorm, ConstantAffine, Linear, Lone, Operator, Value
from exporter.graph.algebra import Float64
from exporter.graph.onnx.affines import chains_in
from exporter.graph.onnx.constants import Known
from exporter.graph.onnx.facts import Facts
from exporter.graph.onnx.nodes import captured_by, inner_nodes, is_standard, label_of, module_of, name_of
from exporter.graph.onnx.products import Site, added_bias, site_of, site_of_norm
from exporter.graph.onnx.roles import role_of
from exporter.graph.onnx.shapes import TensorType, known_tensor, types_of

__all__ = ["ModelConstants", "Reading", "abstract_graph", "nested_batch_norms", "read_model"]

_READ_SHAPE_OR_DTYPE = {("Shape", 0), ("Size", 0), ("CastLike", 1)}
"""Operators and positions of inputs of which they read no number."""


class ModelConstants:
    """The numbers of a model's constants.

    Args:
        model: where they stand.
        exact: name of a constant -> its numbers in float64, where the model holds them rounded, or not at all.
        dtypes: of those that the model does not hold.
    """

    def __init__(self, model: ir.Model, exact: Mapping[str, Float64] | None = None, dtypes: Mapping[str, str] | None = None) -> None:
        self._values = {value.name: value for node in model.graph for value in node.outputs}
        self._values.update(model.graph.initializers)
        self._exact, self._dtypes = exact or {}, dtypes or {}
        self._tensors: dict[str, ir.TensorProtocol | None] = {}

    def read(self, value: str) -> Float64:
        """Return the numbers of ``value``, those of the first time; every floating dtype fits float64 exactly."""
        exact: Float64 = self.kept(value).astype(np.float64, copy=False)
        return exact

    def kept(self, value: str) -> NDArray[Any]:
        """Return the same numbers in the dtype that the model keeps them in."""
        if value in self._exact:
            return self._exact[value]
        if value not in self._tensors:
            self._tensors[value] = known_tensor(self._values[value])
        tensor = self._tensors[value]
        if tensor is None:
            raise KeyError(value)
        return np.asarray(tensor.numpy())

    def dtype(self, value: str) -> str:
        """Return the dtype of ``value``: ``float32``."""
        return self._dtypes[value]


@dataclass(frozen=True, slots=True)
class Reading:
    """A model as the planner sees it, and the way back.

    Attributes:
        sites: operator -> where its weight and its bias are read, or gamma and beta.
        nodes: operator -> the nodes that it stands for, in order; the last makes its output.
        unread: BatchNorms of which the planner cannot be told, each with the reason.
    """

    model: ir.Model
    graph: AbstractGraph
    constants: ModelConstants
    sites: Mapping[str, Site]
    nodes: Mapping[str, tuple[ir.Node, ...]]
    unread: tuple[tuple[str, str], ...]


def abstract_graph(model: ir.Model) -> AbstractGraph:
    """Return the graph of ``model`` as the planner sees it."""
    return read_model(model, types_of(model)).graph


def read_model(model: ir.Model, types: Mapping[str, TensorType], exact: Mapping[str, Float64] | None = None) -> Reading:
    """Return ``model`` as the planner sees it.

    Args:
        model: its nodes stand in the order of execution.
        types: dtype and shape of its values.
        exact: name of a constant -> its numbers in float64, where the model holds them rounded.
    """
    facts = Facts(types, Known(model, types), model.opset_imports.get("", 1))
    maker = _Maker(facts, dict(exact or {}))
    maker.find_merged_(model)
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        maker.add_source_(value)
    for node in model.graph:
        maker.add_node_(node)
    dtypes = {name: value.dtype for name, value in maker.values.items()}
    graph = AbstractGraph(maker.values.values(), maker.operators)
    return Reading(model, graph, ModelConstants(model, maker.exact, dtypes), maker.sites, maker.nodes, tuple(maker.unread))


def nested_batch_norms(model: ir.Model) -> list[str]:
    """Return the BatchNorms inside subgraphs (the branches of an If, the body of a Loop), which the planner does not see."""
    found = [inner for node in model.graph for inner in inner_nodes(node) if inner.op_type == "BatchNormalization" and is_standard(inner)]
    return [_owner_of(node) or label_of(node) for node in found]


@dataclass(slots=True)
class _Maker:
    """The parts of the abstract graph while they are collected."""

    facts: Facts
    exact: dict[str, Float64]
    values: dict[str, Value] = field(default_factory=dict)
    operators: list[Operator] = field(default_factory=list)
    sites: dict[str, Site] = field(default_factory=dict)
    nodes: dict[str, tuple[ir.Node, ...]] = field(default_factory=dict)
    unread: list[tuple[str, str]] = field(default_factory=list)
    merged: dict[ir.Node, Operator] = field(default_factory=dict)
    """The last node of several that are one operator -> that operator."""
    absorbed: set[ir.Node] = field(default_factory=set)
    """The other nodes of those."""
    names: dict[str, int] = field(default_factory=dict)

    def find_merged_(self, model: ir.Model) -> None:
        """Find the nodes that are one operator together: products with their biases, chains of products and sums."""
        for node in model.graph:
            role = role_of(node, 0, self.facts) if node.op_type in {"Conv", "ConvTranspose", "MatMul"} else None
            added = added_bias(node, role, self.facts) if isinstance(role, Linear) else None
            if isinstance(role, Linear) and added is not None:
                last = added.node
                output, bias = name_of(last), f"bias of {name_of(last)}"
                self._add_number_(bias, added.numbers, node)
                self.sites[output] = site_of(node, role, added, self.facts)
                self.nodes[output] = (node, last)
                label = module_of(node) or node.name or output
                inputs = (role.data, role.weight, bias)
                self.merged[last] = Operator(output, label, node.op_type, inputs, output, replace(role, bias=bias))
                self.absorbed.add(node)
        for chain in chains_in(model.graph, self.facts, {*self.merged, *self.absorbed}):
            last = chain.nodes[-1]
            output, data = name_of(last), chain.data.name or ""
            scale = f"scale of {output}" if chain.scales or not chain.is_lone else None
            shift = f"shift of {output}" if chain.shifts or not chain.is_lone else None
            for name, numbers in ((scale, chain.s), (shift, chain.t)):
                if name is not None:
                    self._add_number_(name, numbers, last)
            lone = Lone(chain.s.size) if chain.is_lone else None
            role = ConstantAffine(data, scale, shift, chain.axis or 0, chain.is_batch_norm, lone)
            kind = "batch_norm" if chain.is_batch_norm else "affine" if lone is None else last.op_type
            label = label_of(last) if chain.is_lone else self._unique(label_of(last))
            self.merged[last] = Operator(output, label, kind, (data, *role.parameters), output, role)
            self.nodes[output] = chain.nodes
            self.absorbed.update(chain.nodes[:-1])

    def add_source_(self, value: ir.Value) -> None:
        """Add an input or an initializer."""
        name = value.name or ""
        if name in self.values:
            return
        made = self._value(value)
        made.is_constant = known_tensor(value) is not None
        if not made.is_constant:
            made.label = f"{name}, which an input of the model may replace" if value.is_initializer() else f"the input {name}"
        self.values[name] = made

    def add_node_(self, node: ir.Node) -> None:
        """Add what a node makes, and the node as an operator unless it is a constant."""
        if node in self.absorbed:
            return
        if node.op_type == "Constant" and node.outputs and known_tensor(node.outputs[0]) is not None:
            made = self._value(node.outputs[0])
            made.is_constant = True
            self.values[made.name] = made
            return
        for number, value in enumerate(node.outputs):
            if not value.name:
                continue
            made = self._value(value)
            made.producer = made.name
            self.values[made.name] = made
            operator = self.merged.get(node) or self._operator(node, number)
            self.operators.append(operator)
            self.nodes.setdefault(operator.name, (node,))
            self._note_uses_(node, operator)
        if node.op_type == "BatchNormalization" and is_standard(node) and not self._is_read(node):
            self.unread.append((self._unique(_owner_of(node) or label_of(node)), "it is no BatchNorm of each channel in a dtype that is known"))

    def _is_read(self, node: ir.Node) -> bool:
        return bool(self.operators) and any(
            isinstance(operator.role, BatchNorm) and operator.name == name_of(node) for operator in self.operators[-len(node.outputs) :]
        )

    def _operator(self, node: ir.Node, number: int) -> Operator:
        output = node.outputs[number].name or ""
        role = role_of(node, number, self.facts)
        module = label_of(node)
        if isinstance(role, BatchNorm):
            self.sites[output] = site_of_norm(node, self.facts)
            module = self._unique(_owner_of(node) or module)
        elif isinstance(role, Linear):
            self.sites[output] = site_of(node, role, None, self.facts)
            module = module_of(node) or _stem(role.weight) or module
        inputs = [value.name or "" for value in node.inputs if value is not None]
        return Operator(output, module, node.op_type, (*inputs, *(value.name or "" for value in captured_by(node))), output, role)

    def _note_uses_(self, node: ir.Node, operator: Operator) -> None:
        skipped = {
            value.name
            for position, value in enumerate(node.inputs)
            if value is not None and (node.op_type, position) in _READ_SHAPE_OR_DTYPE and is_standard(node)
        }
        for name in dict.fromkeys(operator.inputs):
            if name in self.values and name not in skipped:
                self.values[name].users.append(operator.name)

    def _add_number_(self, name: str, numbers: Float64, node: ir.Node) -> None:
        """Add a constant that stands in the model in another form."""
        self.exact[name] = numbers
        self.values[name] = Value(name, 1, self.facts.dtype(node.outputs[0]), is_constant=True, label=name, shape=numbers.shape)

    def _value(self, value: ir.Value) -> Value:
        name = value.name or ""
        shape = self.facts.shape(value)
        dtype = self.facts.dtype(value)
        return Value(name, len(shape or ()), dtype, is_output=value.is_graph_output(), label=name, shape=shape or ())

    def _unique(self, name: str) -> str:
        """Make names of BatchNorms unique: a module that is called twice is ``bn`` and ``bn (call 2)``."""
        self.names[name] = self.names.get(name, 0) + 1
        return name if self.names[name] == 1 else f"{name} (call {self.names[name]})"


def _owner_of(node: ir.Node) -> str:
    """Return the module that the parameters and statistics of a BatchNorm belong to by their names, empty where they do not say."""
    owners = [_stem(value.name or "") for value in node.inputs[1:5] if value is not None]
    return owners[2] if len(owners) == 4 and len({owners[2], owners[3]}) == 1 else ""


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
