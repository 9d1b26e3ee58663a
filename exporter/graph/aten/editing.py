"""Changing a copy of an exported program: new constants, calls that go, and what nobody reads any more."""

from __future__ import annotations

import dataclasses
import operator as python_operator
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch._export.verifier import SpecViolationError
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument

from exporter.errors import InternalError
from exporter.graph.algebra import Float64
from exporter.graph.aten.calls import dtype_name
from exporter.graph.aten.reading import constant_tensor
from exporter.graph.rewrites.late_weight import LateWeight, rounded

__all__ = ["ProgramEditor", "copied_graph", "rebuilt_program"]


def rebuilt_program(
    program: ExportedProgram,
    graph: torch.fx.Graph,
    specs: list[InputSpec],
    state_dict: dict[str, torch.Tensor],
    constants: dict[str, Any],
    renamed: Mapping[str, str],
    *,
    root: torch.nn.Module | None = None,
) -> ExportedProgram:
    """Return a verified program with ``graph`` and everything that was not given taken from ``program``.

    Args:
        program: what to take the rest from.
        graph, specs, state_dict, constants: the new parts.
        renamed: old -> new name of the nodes that stand in for others, which may be outputs.
        root: holds the nested graphs that calls take as arguments; None: those of ``program``.
    """
    outputs = [dataclasses.replace(spec, arg=_renamed(spec.arg, renamed)) for spec in program.graph_signature.output_specs]
    signature = ExportGraphSignature(specs, outputs)
    calls = []
    for entry in program.module_call_graph:
        if entry.signature is not None:
            own = [_renamed(argument, renamed) for argument in entry.signature.outputs]
            entry = dataclasses.replace(entry, signature=dataclasses.replace(entry.signature, outputs=own))  # noqa: PLW2901 - the same entry, renamed
        calls.append(entry)
    try:
        return ExportedProgram(
            root if root is not None else program.graph_module,
            graph,
            signature,
            state_dict,
            program.range_constraints,
            calls,
            program.example_inputs,
            constants,
            verifiers=program.verifiers,
        )
    except (SpecViolationError, AssertionError, RuntimeError) as err:
        raise InternalError("E391", "the folded graph does not pass torch's verifier", facts={"found": err}) from err


def copied_graph(given: torch.fx.Graph) -> tuple[torch.fx.Graph, dict[torch.fx.Node, torch.fx.Node]]:
    """Return a copy of a graph, its nodes by those of the original; each keeps its name, also where that is one of Python's: ``input``."""
    graph = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    graph.output(graph.graph_copy(given, copies))
    ends = [next(node for node in reversed(each.nodes) if node.op == "output") for each in (given, graph)]
    ends[1].meta = dict(ends[0].meta)
    for old, new in copies.items():
        if new.name != old.name:
            new.name = old.name
    return graph, copies


class ProgramEditor:
    """A copy of a program's graph that can be changed; tensors that nobody replaces are shared with the original.

    Attributes:
        graph: the copy.
        nodes: node name in the original -> node of the copy.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self.graph, copies = copied_graph(program.graph)
        self.nodes = {old.name: new for old, new in copies.items()}
        self._specs = [InputSpec(spec.kind, spec.arg, spec.target, spec.persistent) for spec in program.graph_signature.input_specs]
        self._by_name: dict[str, InputSpec] = {getattr(spec.arg, "name", ""): spec for spec in self._specs}
        self._state_dict: dict[str, torch.Tensor] = dict(program.state_dict)
        self._constants: dict[str, Any] = dict(program.constants)
        self._added: dict[str, list[InputSpec]] = {}
        """Node name of a placeholder -> the new ones right behind it."""
        self._renamed: dict[str, str] = {}
        self._disused: set[str] = set()
        self._fakes: dict[tuple[object, ...], torch.Tensor] = {}
        targets = {spec.target for spec in self._specs if spec.target is not None}
        tensors = (program.state_dict.get(target, program.constants.get(target)) for target in targets)
        self._num_in_memory = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors if isinstance(tensor, torch.Tensor))

    def finished(self) -> ExportedProgram:
        """Return the changed program, without the constants that lost their last reader."""
        self._remove_disused_()
        return rebuilt_program(self._program, self.graph, self._specs, self._state_dict, self._constants, self._renamed)

    def node(self, name: str) -> torch.fx.Node:
        """Return the node that stands for ``name`` by now."""
        while name in self._renamed:
            name = self._renamed[name]
        return self.nodes[name]

    def target_of(self, placeholder: torch.fx.Node) -> str:
        """Return the name of the parameter, buffer or constant that a placeholder stands for."""
        return self._by_name[placeholder.name].target or ""

    @property
    def constants(self) -> Collection[str]:
        """Return the names of the placeholders that stand for a parameter, a buffer or a constant."""
        return {name for name, spec in self._by_name.items() if spec.target is not None}

    def set_numbers_(self, reader: torch.fx.Node, placeholder: torch.fx.Node, numbers: Float64 | LateWeight) -> None:
        """Let ``reader`` read ``numbers``, rounded once, where it read ``placeholder``; other readers keep what they read."""
        spec = self._by_name[placeholder.name]
        target = spec.target or ""
        if set(placeholder.users) == {reader} and not self._is_shared(target) and tuple(placeholder.meta["val"].shape) == numbers.shape:
            self._store_(spec, target, numbers, constant_tensor(self._program, target))
            return
        reader.replace_input_with(placeholder, self.add_constant_(placeholder, numbers, target))
        self._disused.add(placeholder.name)

    def add_constant_(self, like: torch.fx.Node, numbers: Float64 | LateWeight, name: str, *, dtype: torch.dtype | None = None) -> torch.fx.Node:
        """Add a constant of the kind and dtype of the placeholder ``like``, right behind it, and return its node.

        Args:
            like: a placeholder.
            numbers: float64; rounded once.
            name: what it is to be called, unless that is taken.
            dtype: another dtype than that of ``like``.
        """
        spec = self._by_name[like.name]
        target = self._free_name(name)
        original = constant_tensor(self._program, spec.target or "")
        original = original if dtype is None else original.new_empty(0, dtype=dtype)
        with self.graph.inserting_after(like):
            placeholder = self.graph.placeholder(re.sub(r"\W", "_", f"c_{target}"))
        fake = like.meta["val"]
        placeholder.meta = {**like.meta, "val": self._fake_of(numbers.shape, dtype or fake.dtype, fake)}
        new = InputSpec(spec.kind, TensorArgument(placeholder.name), target, spec.persistent)
        self._by_name[placeholder.name] = new
        self._added.setdefault(like.name, []).insert(0, new)
        self.nodes[placeholder.name] = placeholder
        (self._state_dict if spec.target in self._state_dict else self._constants)[target] = original
        self._store_(new, target, numbers, original)
        return placeholder

    def _fake_of(self, shape: tuple[int, ...], dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
        """Return a tensor without numbers; one does for all constants of a shape."""
        key = (shape, dtype, like.device)
        if key not in self._fakes:
            with _fake_mode_of(like):
                self._fakes[key] = torch.empty(shape, dtype=dtype, device=like.device)
        return self._fakes[key]

    def _free_name(self, name: str) -> str:
        """Return ``name``, or where it is taken one like it: ``conv.folded_bias``, ``conv.folded_bias_2``, ..."""
        stem, dot, last = name.rpartition(".")
        candidate, number = name, 1
        while candidate in self._state_dict or candidate in self._constants:
            candidate = f"{stem}{dot}folded_{last}" + (f"_{number}" if number > 1 else "")
            number += 1
        return candidate

    def copy_(self, name: str, copy_name: str, readers: Iterable[str]) -> None:
        """Put a copy of the call ``name`` right behind it; these of its readers read the copy's result instead."""
        original = self.nodes[name]
        with self.graph.inserting_after(original):
            made = self.graph.create_node(original.op, original.target, original.args, original.kwargs, name=copy_name)
        made.meta = dict(original.meta)
        for reader in readers:
            self.nodes[reader].replace_input_with(original, made)
        self.nodes[copy_name] = made

    def insert_(self, reader: torch.fx.Node, target: OpOverload, args: tuple[Any, ...]) -> torch.fx.Node:
        """Add a call right in front of ``reader``, which belongs to the same module."""
        with self.graph.inserting_before(reader):
            return self._called(reader, target, args)

    def append_(self, node: torch.fx.Node, target: OpOverload, args: tuple[Any, ...]) -> torch.fx.Node:
        """Add a call right behind ``node``, which reads it; whoever else read ``node`` reads that call now."""
        with self.graph.inserting_after(node):
            made = self._called(node, target, args)
        node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
        self._renamed[node.name] = made.name
        self.nodes[made.name] = made
        return made

    def _called(self, beside: torch.fx.Node, target: OpOverload, args: tuple[Any, ...]) -> torch.fx.Node:
        made = self.graph.call_function(target, args)
        fakes = torch.fx.map_arg(args, lambda node: node.meta["val"])
        with _fake_mode_of(beside.meta["val"]):
            value = target(*fakes)
        made.meta = {**beside.meta, "val": value}
        return made

    def bypass_(self, name: str, by: str) -> None:
        """Take the call ``name`` out: its readers read ``by``; what nobody reads any more goes too."""
        gone, stand_in = self.node(name), self.node(by)
        for user in list(gone.users):
            if user.target is python_operator.getitem:
                user.replace_all_uses_with(stand_in)
                self._renamed[user.name] = stand_in.name
                self.graph.erase_node(user)
        gone.replace_all_uses_with(stand_in)
        self._renamed[gone.name] = stand_in.name
        self._erase_(gone)

    def replace_(self, name: str, by: torch.fx.Node) -> None:
        """Let the readers of the call ``name`` read ``by``, a new constant; what nobody reads any more goes too."""
        gone = self.node(name)
        gone.replace_all_uses_with(by)
        self._renamed[gone.name] = by.name
        self._erase_(gone)

    def _erase_(self, node: torch.fx.Node) -> None:
        todo, erased = [node], set()
        while todo:
            gone = todo.pop()
            if gone.users or gone.op == "output" or gone in erased:
                continue
            if gone.op == "placeholder":
                self._disused.add(gone.name)
                continue
            if gone is not node and gone.is_impure():
                continue
            inputs = list(gone.all_input_nodes)
            self.graph.erase_node(gone)
            erased.add(gone)
            todo += inputs

    def _store_(self, spec: InputSpec, target: str, numbers: Float64 | LateWeight, like: torch.Tensor) -> None:
        new = _tensor(numbers, like)
        home = self._state_dict if target in self._state_dict else self._constants
        home[target] = torch.nn.Parameter(new, requires_grad=False) if spec.kind is InputKind.PARAMETER else new

    def _is_shared(self, target: str) -> bool:
        """Return whether another constant looks into the same memory."""
        own = constant_tensor(self._program, target)
        return self._num_in_memory[own.untyped_storage().data_ptr()] > 1 and own.numel() > 0

    def _in_order(self) -> Iterator[InputSpec]:
        """Yield the inputs as they stand in the graph: each new one behind the placeholder that it was added to."""
        todo = list(reversed(self._specs))
        while todo:
            spec = todo.pop()
            yield spec
            todo += reversed(self._added.get(getattr(spec.arg, "name", ""), ()))

    def _remove_disused_(self) -> None:
        """Remove the constants that lost their readers, and counters of BatchNorms that are gone."""
        placeholders = {node.name: node for node in self.graph.nodes if node.op == "placeholder"}
        gone = {name for name in self._disused if name in placeholders and not placeholders[name].users}
        owners = {
            (self._by_name[name].target or "").rpartition(".")[0] for name in gone if (self._by_name[name].target or "").endswith("running_mean")
        }
        counters = {f"{owner}.num_batches_tracked" if owner else "num_batches_tracked" for owner in owners}
        kept = []
        for spec in self._in_order():
            name = getattr(spec.arg, "name", "")
            node = placeholders.get(name)
            if node is not None and not node.users and (name in gone or spec.target in counters):
                self.graph.erase_node(node)
                self._state_dict.pop(spec.target or "", None)
                self._constants.pop(spec.target or "", None)
            else:
                kept.append(spec)
        self._specs = kept


def _fake_mode_of(value: torch.Tensor) -> AbstractContextManager[object]:
    """Return the mode in which tensors without numbers are made like ``value``."""
    mode: AbstractContextManager[object] = value.fake_mode if hasattr(value, "fake_mode") else torch.device("cpu")
    return mode


def _renamed(argument: Any, renamed: Mapping[str, str]) -> Any:  # noqa: ANN401 - one of torch's kinds of arguments
    name = str(getattr(argument, "name", ""))
    while name in renamed:
        name = renamed[name]
    return dataclasses.replace(argument, name=name) if name != getattr(argument, "name", "") else argument


def _tensor(numbers: Float64 | LateWeight, like: torch.Tensor) -> torch.Tensor:
    """Return ``numbers`` rounded once to the dtype of ``like``."""
    dtype = dtype_name(like.dtype)
    new = np.ascontiguousarray(rounded(numbers, dtype))
    new = new.copy() if new is numbers or new.base is not None else new
    if dtype == "bfloat16":  # numpy hands bfloat16 over as bits
        return torch.from_numpy(new.view("uint16")).view(torch.bfloat16).to(like.device)
    return torch.from_numpy(new).to(like.device)
