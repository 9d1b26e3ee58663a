"""Changing a model: new initializers, nodes that go, and what nobody reads any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import onnx_ir as ir

from exporter.graph.algebra import Float64
from exporter.graph.onnx.nodes import inner_nodes, nested_graphs
from exporter.graph.rewrites.late_weight import LateWeight, rounded

__all__ = ["ModelEditor"]


class ModelEditor:
    """Changes the outermost graph of a model in place; what nobody reads any more goes, what nobody read before stays."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.opset = model.opset_imports.get("", 1)
        self._values: dict[str, ir.Value] = {value.name: value for value in model.graph.inputs if value.name}
        self._values.update(model.graph.initializers)
        self._values.update({value.name: value for node in model.graph for value in node.outputs if value.name})
        self._taken = {*self._values, *(value.name for node in model.graph.all_nodes() for value in node.outputs if value.name)}
        self._subgraphs = list(model.graph.subgraphs())
        for graph in self._subgraphs:
            self._taken.update((*(value.name for value in graph.inputs if value.name), *graph.initializers))
        self._stands_for: dict[ir.Value, ir.Value] = {}
        self._nodes = {node.name for node in model.graph.all_nodes() if node.name}

    def value(self, name: str) -> ir.Value:
        """Return the value that stands for ``name`` by now."""
        value = self._values[name]
        while value in self._stands_for:
            value = self._stands_for[value]
        return value

    def add_initializer_(self, name: str, numbers: Float64 | LateWeight, dtype: str) -> ir.Value:
        """Add an initializer and return it.

        Args:
            name: what it is to be called, unless that is taken.
            numbers: float64; rounded once.
            dtype: what they are rounded to.
        """
        free = self.free_name(name)
        value = ir.Value(name=free)
        set_tensor_(value, numbers, dtype)
        self.graph.register_initializer(value)
        self._values[free] = value
        return value

    def set_numbers_(self, reader: ir.Node, position: int, numbers: Float64 | LateWeight, dtype: str) -> None:
        """Let ``reader`` read ``numbers``, rounded once, at ``position``; other readers of what it read keep it."""
        old = reader.inputs[position] if position < len(reader.inputs) else None
        if old is not None and old.is_initializer() and not old.is_graph_input() and not old.is_graph_output() and len(old.uses()) == 1:
            set_tensor_(old, numbers, dtype)
            return
        name = f"{reader.outputs[0].name}.bias" if old is None else (old.name or "")
        self.give_input_(reader, position, self.add_initializer_(name, numbers, dtype))

    def copy_(self, nodes: tuple[ir.Node, ...], output: str, name: str) -> tuple[ir.Node, ...]:
        """Put a copy of nodes that make ``output`` together right behind them; what the copy makes is known as ``name``."""
        copies: dict[ir.Value, ir.Value] = {}
        made = []
        behind = nodes[-1]
        for node in nodes:
            inputs = [copies.get(value, value) if value is not None else None for value in node.inputs]
            copied = ir.Node(
                node.domain,
                node.op_type,
                inputs,
                list(node.attributes.values()),
                num_outputs=len(node.outputs),
                name=self.free_node_name(f"{node.name or node.op_type}_copy"),
                metadata_props=dict(node.metadata_props),
                doc_string=node.doc_string,
            )
            for old, new in zip(node.outputs, copied.outputs, strict=True):
                if old.name:
                    new.name = self.free_name(name if old.name == output else f"{old.name}_copy")
                new.shape, new.type = old.shape, old.type
                copies[old] = new
                if old.name == output:
                    self._values[name] = new
            self.graph.insert_after(behind, copied)
            behind = copied
            made.append(copied)
        return tuple(made)

    def redirect_(self, node: ir.Node, old: str, new: str) -> None:
        """Let a node, and its subgraphs, read the value ``new`` where they read ``old``."""
        gone, stand_in = self.value(old), self.value(new)
        for reader in (node, *inner_nodes(node)):
            for position, value in enumerate(reader.inputs):
                if value is gone:
                    reader.replace_input_with(position, stand_in)

    def insert_(
        self, before: ir.Node, op_type: str, inputs: Sequence[ir.Value], name: str, attributes: Mapping[str, ir.Attr] | None = None
    ) -> ir.Value:
        """Put a node in front of another and return what it makes, called ``name`` or like it."""
        free = self.free_name(name)
        node = ir.Node("", op_type, inputs, list((attributes or {}).values()), name=self.free_node_name(f"node_{free}"))
        node.metadata_props.update(before.metadata_props)
        node.outputs[0].name = free
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def add_integers_(self, name: str, *numbers: int) -> ir.Value:
        """Add an initializer of whole numbers and return it."""
        value = ir.Value(name=self.free_name(name))
        value.const_value = ir.Tensor(np.array(numbers, dtype=np.int64), name=value.name)
        value.shape, value.type = ir.Shape((len(numbers),)), ir.TensorType(ir.DataType.INT64)
        self.graph.register_initializer(value)
        return value

    def give_input_(self, reader: ir.Node, position: int, value: ir.Value) -> None:
        """Let a node read ``value`` at ``position``, also where it had no such input."""
        old = reader.inputs[position] if position < len(reader.inputs) else None
        if position >= len(reader.inputs):
            reader.resize_inputs(position + 1)
        reader.replace_input_with(position, value)
        self._forget_(old)

    def take_input_away_(self, reader: ir.Node, position: int) -> None:
        """Let a node do without its last input."""
        old = reader.inputs[position]
        reader.replace_input_with(position, None)
        if position == len(reader.inputs) - 1:
            reader.resize_inputs(position)
        self._forget_(old)

    def add_sum_behind_(self, value: ir.Value, other: ir.Value) -> None:
        """Add a sum behind the node that makes ``value``: whoever read that reads the sum with ``other``."""
        node = cast("ir.Node", value.producer())
        added = ir.Node("", "Add", [value, other], name=self.free_node_name(f"{node.name or node.op_type}_sum"))
        added.metadata_props.update(node.metadata_props)
        made = added.outputs[0]
        made.shape, made.type = value.shape, value.type
        for user, position in list(value.uses()):
            if user is not added:
                user.replace_input_with(position, made)
        self.graph.insert_after(node, added)
        made.name = self.free_name(f"{value.name}_sum")
        self._stands_for[value] = made
        self._hand_output_over_(value, made)

    def bypass_(self, name: str, by: str) -> None:
        """Take the operator that makes ``name`` out: its readers read ``by``; what nobody reads any more goes too."""
        self.replace_(self._values[name], self.value(by))

    def replace_(self, gone: ir.Value, stand_in: ir.Value) -> None:
        """Let whoever read ``gone`` read ``stand_in``; what nobody reads any more goes too."""
        for user, position in list(gone.uses()):
            user.replace_input_with(position, stand_in)
        for graph in self._subgraphs:
            for position, value in enumerate(graph.outputs):
                if value is gone:
                    graph.outputs[position] = stand_in
        self._stands_for[gone] = stand_in
        self._hand_output_over_(gone, stand_in)
        self._forget_(gone)

    def free_name(self, name: str) -> str:
        """Return a name for a value that no other has: ``name``, or one like it."""
        candidate, number = name or "value", 1
        while candidate in self._taken:
            candidate = f"{name}_folded" + (f"_{number}" if number > 1 else "")
            number += 1
        self._taken.add(candidate)
        return candidate

    def free_node_name(self, name: str) -> str:
        """Return a name for a node that no other has."""
        candidate, number = name, 1
        while candidate in self._nodes:
            number += 1
            candidate = f"{name}_{number}"
        self._nodes.add(candidate)
        return candidate

    def _hand_output_over_(self, gone: ir.Value, stand_in: ir.Value) -> None:
        """Where ``gone`` is an output of the model, let ``stand_in`` be it, under the same name."""
        places = [position for position, value in enumerate(self.graph.outputs) if value is gone]
        if not places:
            return
        name = gone.name
        is_free = stand_in.producer() is not None and not stand_in.is_graph_output()
        if not is_free:
            identity = ir.Node("", "Identity", [stand_in], name=self.free_node_name(f"{name}_identity"))
            producer = gone.producer()
            if producer is not None:
                self.graph.insert_after(producer, identity)
            else:
                self.graph.append(identity)
            stand_in = identity.outputs[0]
        gone.name = self.free_name(f"{name}_unfolded")
        stand_in.name = name
        stand_in.shape, stand_in.type = gone.shape, gone.type
        for position in places:
            self.graph.outputs[position] = stand_in

    def _forget_(self, value: ir.Value | None) -> None:
        """Remove what makes ``value`` if nobody reads it any more, and what only that had read."""
        todo = [value]
        while todo:
            here = todo.pop()
            if here is None or here.uses() or here.is_graph_output():
                continue
            node = here.producer()
            if node is None:
                if here.is_initializer() and not here.is_graph_input():
                    self.graph.initializers.pop(here.name or "", None)
                continue
            if node.graph is not self.graph or any(nested_graphs(node)) or any(other.uses() or other.is_graph_output() for other in node.outputs):
                continue
            captured = [inner for inner in node.inputs if inner is not None]
            self.graph.remove(node, safe=True)
            todo += captured


def set_tensor_(value: ir.Value, numbers: Float64 | LateWeight, dtype: str) -> None:
    """Give an initializer other numbers, rounded once."""
    exact = numbers if isinstance(numbers, LateWeight) else np.asarray(numbers, dtype=np.float64)
    new = np.asarray(rounded(exact, dtype), order="C")  # a single number keeps its rank
    if new is numbers or new.base is not None:
        new = new.copy()
    tensor = ir.tensor(new, name=value.name)
    value.const_value = tensor
    value.shape, value.type = ir.Shape(new.shape), ir.TensorType(tensor.dtype)
