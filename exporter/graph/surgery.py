"""Carry a plan out on a copy of an exported program; the original keeps its graph and its tensors."""

from __future__ import annotations

import copy
import dataclasses
import operator as python_operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch._export.verifier import SpecViolationError
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument

from exporter.errors import InternalError
from exporter.graph.algebra import Float64, rounded_once
from exporter.graph.aten import arguments_of, constant_tensor
from exporter.graph.planning import Edit

__all__ = ["folded_program", "rebuilt_program"]


def folded_program(program: ExportedProgram, edits: Iterable[Edit]) -> ExportedProgram:
    """Return a program with the ``edits`` done: new weights, no folded BatchNorm, none of its parameters and buffers.

    Tensors that no edit touches are shared with ``program``.
    """
    return _Surgery(program).run(edits)


def rebuilt_program(
    program: ExportedProgram,
    graph: torch.fx.Graph,
    specs: list[InputSpec],
    state_dict: dict[str, torch.Tensor],
    constants: dict[str, Any],
    renamed: Mapping[str, str],
) -> ExportedProgram:
    """Return a verified program with ``graph`` and everything that was not given taken from ``program``.

    Args:
        program: what to take the rest from.
        graph, specs, state_dict, constants: the new parts.
        renamed: old -> new name of the nodes that stand in for others, which may be outputs.
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
            program.graph_module,
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


def _renamed(argument: Any, renamed: Mapping[str, str]) -> Any:  # noqa: ANN401 - one of torch's kinds of arguments
    name = str(getattr(argument, "name", ""))
    return dataclasses.replace(argument, name=renamed[name]) if name in renamed else argument


class _Surgery:
    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.graph = torch.fx.Graph()
        copies: dict[torch.fx.Node, torch.fx.Node] = {}
        result = self.graph.graph_copy(program.graph, copies)
        self.graph.output(result)
        for old, new in copies.items():
            new.meta = dict(old.meta)
        ends = [next(node for node in reversed(graph.nodes) if node.op == "output") for graph in (program.graph, self.graph)]
        ends[1].meta = dict(ends[0].meta)
        self.nodes = {old.name: new for old, new in copies.items()}
        self.specs = [copy.copy(spec) for spec in program.graph_signature.input_specs]
        self.by_name: dict[str, InputSpec] = {getattr(spec.arg, "name", ""): spec for spec in self.specs}
        self.state_dict: dict[str, torch.Tensor] = dict(program.state_dict)
        self.constants: dict[str, Any] = dict(program.constants)
        self.renamed: dict[str, str] = {}

    def run(self, edits: Iterable[Edit]) -> ExportedProgram:
        owners: set[str] = set()
        for edit in edits:
            producer = self.nodes[edit.producer]
            self._replace_weight_(producer, edit.weight)
            self._replace_bias_(producer, edit.bias)
            for name in edit.absorbed:
                owners |= self._remove_batch_norm_(self.nodes[name], producer)
        self._remove_unread_(owners)
        self.graph.lint()
        return rebuilt_program(self.program, self.graph, self.specs, self.state_dict, self.constants, self.renamed)

    def _replace_weight_(self, producer: torch.fx.Node, weight: Float64) -> None:
        call = arguments_of(producer)
        self._write_(call["weight"] if "weight" in call else call["mat2"], weight)

    def _replace_bias_(self, producer: torch.fx.Node, bias: Float64) -> None:
        call = arguments_of(producer)
        present = call["self"] if "mat2" in call else call["bias"]
        if present is not None:
            self._write_(present, bias)
            return
        weight: torch.fx.Node = call["weight"]
        producer.args = (*producer.args[:2], self._new_placeholder(weight, bias), *producer.args[3:])
        producer.kwargs = {name: value for name, value in producer.kwargs.items() if name != "bias"}

    def _write_(self, placeholder: torch.fx.Node, numbers: Float64) -> None:
        spec = self._spec(placeholder.name)
        target = spec.target or ""
        old = constant_tensor(self.program, target)
        new = _tensor(numbers, old)
        home = self.state_dict if target in self.state_dict else self.constants
        home[target] = torch.nn.Parameter(new, requires_grad=False) if spec.kind is InputKind.PARAMETER else new

    def _new_placeholder(self, weight: torch.fx.Node, bias: Float64) -> torch.fx.Node:
        """Add a constant of the weight's kind right behind the weight, named as the module would have named its bias."""
        spec = self._spec(weight.name)
        stem = (spec.target or "weight").rpartition(".")[0]
        taken = {*self.state_dict, *self.constants}
        candidates = (f"{stem}.{name}" if stem else name for name in ("bias", "folded_bias", *(f"folded_bias_{n}" for n in range(2, 99))))
        target = next(name for name in candidates if name not in taken)
        like = constant_tensor(self.program, spec.target or "")
        with self.graph.inserting_after(weight):
            placeholder = self.graph.placeholder(weight.name.removesuffix("_weight") + "_bias")
        fake = weight.meta["val"]
        with fake.fake_mode if hasattr(fake, "fake_mode") else torch.device("cpu"):
            placeholder.meta = {**weight.meta, "val": torch.empty(bias.shape, dtype=fake.dtype, device=fake.device)}
        position = self.specs.index(spec) + 1
        self.by_name[placeholder.name] = InputSpec(spec.kind, TensorArgument(placeholder.name), target, spec.persistent)
        self.specs.insert(position, self.by_name[placeholder.name])
        home = self.state_dict if spec.target in self.state_dict else self.constants
        new = _tensor(bias, like)
        home[target] = torch.nn.Parameter(new, requires_grad=False) if spec.kind is InputKind.PARAMETER else new
        return placeholder

    def _remove_batch_norm_(self, batch_norm: torch.fx.Node, producer: torch.fx.Node) -> set[str]:
        """Let ``producer`` stand in for ``batch_norm``; return the targets that belonged to it."""
        call = arguments_of(batch_norm)
        targets = [
            self._spec(call[name].name).target or ""
            for name in ("weight", "bias", "running_mean", "running_var")
            if isinstance(call[name], torch.fx.Node)
        ]
        for user in list(batch_norm.users):
            if user.target is python_operator.getitem:
                user.replace_all_uses_with(producer)
                self.renamed[user.name] = producer.name
                self.graph.erase_node(user)
        batch_norm.replace_all_uses_with(producer)
        self.renamed[batch_norm.name] = producer.name
        self.graph.erase_node(batch_norm)
        owner = call["running_mean"]
        prefix = (self._spec(owner.name).target or "").rpartition(".")[0] if isinstance(owner, torch.fx.Node) else ""
        return {*targets, f"{prefix}.num_batches_tracked" if prefix else "num_batches_tracked"}

    def _remove_unread_(self, targets: set[str]) -> None:
        placeholders = {node.name: node for node in self.graph.nodes if node.op == "placeholder"}
        kept = []
        for spec in self.specs:
            node = placeholders.get(getattr(spec.arg, "name", ""))
            if spec.target in targets and node is not None and not node.users:
                self.graph.erase_node(node)
                self.state_dict.pop(spec.target or "", None)
                self.constants.pop(spec.target or "", None)
            else:
                kept.append(spec)
        self.specs = kept

    def _spec(self, name: str) -> InputSpec:
        return self.by_name[name]


def _tensor(numbers: Float64, like: torch.Tensor) -> torch.Tensor:
    """Return ``numbers`` rounded once to the dtype of ``like``."""
    dtype = str(like.dtype).removeprefix("torch.")
    rounded = rounded_once(numbers, dtype)
    if dtype == "bfloat16":  # numpy hands bfloat16 over as bits
        return torch.from_numpy(rounded.view("uint16").copy()).view(torch.bfloat16).to(like.device)
    return torch.from_numpy(rounded.copy()).to(like.device)
