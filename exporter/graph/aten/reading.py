"""Adapter: an exported program of aten calls -> the abstract graph, and the numbers of its constants.

An exported program keeps in-place calls (``relu_``, ``add_``) as they were written, so a tensor that anything may write to is
no constant, and a BatchNorm in training mode is there as what it is.
"""

from __future__ import annotations

import operator as python_operator
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from exporter.graph.abstract import AbstractGraph, BatchNorm, ConstantAffine, Linear, Operator, Role, Value
from exporter.graph.algebra import Float64
from exporter.graph.aten.calls import BATCH_NORMS, arguments_of, dtype_name, memory_arguments, module_of, operator_kind, rank_of, shape_of, source_of
from exporter.graph.aten.roles import role_of

__all__ = ["ProgramConstants", "abstract_graph", "constant_tensor", "count_batch_norms", "count_calls", "nested_batch_norms"]

_SIZES = {"sym_size", "sym_numel", "sym_stride"}
_LIKE = {"reshape_as", "view_as", "expand_as"}
"""Calls that read the shape of a tensor and none of its numbers; the last ones, of their second argument."""

_MAY_BE_BATCH_NORM = {*BATCH_NORMS, "instance_norm", "add", "add_"}
_CONSTANT_KINDS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def abstract_graph(program: ExportedProgram) -> AbstractGraph:
    """Return the graph of ``program`` as the planner sees it."""
    nodes = list(program.graph.nodes)
    targets, constants = _targets(program), _constants(program)
    results = {arg for node in nodes if node.op == "output" for arg in node.all_input_nodes}
    values, operators = [], []
    names = _Names()
    for node in nodes:
        if node.op == "output":
            continue
        tensor = node.meta.get("val")
        value = Value(node.name, rank=0, dtype="", is_output=node in results, label=node.name)
        if isinstance(tensor, torch.Tensor):
            value.dtype, value.shape = dtype_name(tensor.dtype), shape_of(tensor)
            value.rank = len(value.shape)
        value.users = [user.name for user in node.users if user.op != "output" and not _reads_shape_only(user, node)]
        if node.op == "placeholder":
            target = targets.get(node.name)
            if target is None:
                value.label = f"the input {node.name}"
            else:
                value.label, value.is_constant, value.storage = target, node.name in constants, _storage(program, target)
        else:
            value.producer = node.name
            operators.append(_operator(node, constants, names))
        values.append(value)
    return AbstractGraph(*_without_products(values, operators))


def count_batch_norms(program: ExportedProgram) -> int:
    """Return the number of BatchNorms in ``program``, as ``abstract_graph`` finds them."""
    constants = _constants(program)
    roles = (role_of(node, constants) for node in program.graph.nodes if _is_aten(node) and operator_kind(node) in _MAY_BE_BATCH_NORM)
    return sum(isinstance(role, BatchNorm) or (isinstance(role, ConstantAffine) and role.is_batch_norm) for role in roles)


def _targets(program: ExportedProgram) -> dict[str, str]:
    """Return placeholder -> name of its tensor."""
    specs = program.graph_signature.input_specs
    return {spec.arg.name: spec.target for spec in specs if spec.kind in _CONSTANT_KINDS and spec.target is not None}


def _constants(program: ExportedProgram) -> dict[str, str]:
    """Return the placeholders that nothing writes to, with the names of their tensors."""
    signature = program.graph_signature
    written = {*signature.buffers_to_mutate.values(), *getattr(signature, "parameters_to_mutate", {}).values()}
    return {name: target for name, target in _targets(program).items() if target not in written}


def _without_products(values: list[Value], operators: list[Operator]) -> tuple[list[Value], list[Operator]]:
    """Let a frozen BatchNorm read its data itself: its product, which nothing else reads, is part of it."""
    table = {value.name: value for value in values}
    gone: set[str] = set()
    for position, operator in enumerate(operators):
        role = operator.role
        if not isinstance(role, ConstantAffine) or role.scale is None or role.shift is None:
            continue  # no BatchNorm, or one of the two alone
        product = next(name for name in operator.inputs if name != role.shift)
        for name in (role.data, role.scale):
            table[name].users = list(dict.fromkeys(operator.name if user == product else user for user in table[name].users))
        operators[position] = replace(operator, inputs=(role.data, role.scale, role.shift), writes=(), alias_of=None)
        gone.add(product)
    return [value for value in values if value.name not in gone], [operator for operator in operators if operator.name not in gone]


class ProgramConstants:
    """The numbers of a program's parameters, buffers and constants.

    Args:
        program: where they stand.
        exact: name of a constant -> its numbers in float64, where the program holds them rounded.
    """

    def __init__(self, program: ExportedProgram, exact: Mapping[str, Float64] | None = None) -> None:
        self._program = program
        self._exact = exact or {}
        self._targets = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs}
        self._views: dict[str, NDArray[Any]] = {}

    def read(self, value: str) -> Float64:
        """Return the numbers of the placeholder ``value``; every floating dtype fits float64 exactly."""
        exact: Float64 = self.kept(value).astype(np.float64, copy=False)
        return exact

    def kept(self, value: str) -> NDArray[Any]:
        """Return the same numbers in the dtype that the program keeps them in, where NumPy knows it; not a copy."""
        if value in self._views:
            return self._views[value]
        if self._targets[value] in self._exact:
            return self._exact[self._targets[value] or ""]
        tensor = self._tensor(value).detach()
        if tensor.dtype is torch.bfloat16 or not tensor.is_cpu:  # of the former NumPy knows nothing
            copied: NDArray[Any] = tensor.to("cpu", torch.float64).numpy()
            return copied
        return self._views.setdefault(value, tensor.numpy())

    def dtype(self, value: str) -> str:
        """Return the dtype of the placeholder ``value``, without ``torch.``."""
        return dtype_name(self._tensor(value).dtype)

    def _tensor(self, value: str) -> torch.Tensor:
        return constant_tensor(self._program, self._targets[value] or "")


def constant_tensor(program: ExportedProgram, target: str) -> torch.Tensor:
    """Return the parameter, buffer or constant of ``program`` called ``target``."""
    found = program.state_dict.get(target)
    if found is None:
        found = program.constants[target]
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"{target} is a {type(found).__name__}")
    return found


def count_calls(program: ExportedProgram) -> int:
    """Return the number of tensor operations, without access to tuples and arithmetic on sizes."""
    return sum(
        isinstance(node.target, (OpOverload, HigherOrderOperator)) and operator_kind(node) != "sym_size"
        for node in program.graph.nodes
        if node.op == "call_function"
    )


def nested_batch_norms(program: ExportedProgram) -> Iterator[str]:
    """Yield the BatchNorms inside graphs that are arguments of a call (``torch.cond``, a changed grad mode); the planner does not see them."""
    for name, module in program.graph_module.named_modules():
        if name and isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                if node.op == "call_function" and operator_kind(node) in BATCH_NORMS:
                    yield module_of(node) or f"{name}.{node.name}"


class _Names:
    """Makes names of BatchNorms unique: a module that is called twice is ``bn`` and ``bn (call 2)``."""

    def __init__(self) -> None:
        self._count: dict[str, int] = {}

    def unique(self, name: str) -> str:
        self._count[name] = self._count.get(name, 0) + 1
        return name if self._count[name] == 1 else f"{name} (call {self._count[name]})"


def _operator(node: torch.fx.Node, constants: Mapping[str, str], names: _Names) -> Operator:
    kind, module = operator_kind(node), module_of(node)
    role: Role | None = None
    if node.op == "call_function" and (node.target is python_operator.getitem or _is_aten(node)):
        role = role_of(node, constants)
    if isinstance(role, BatchNorm):
        owner = constants.get(role.mean or role.gamma or "", "").rpartition(".")[0]
        module, kind = names.unique(owner or module or node.name), "batch_norm"
    elif isinstance(role, ConstantAffine) and role.lone is None:
        module, kind = names.unique(module or node.name), "batch_norm" if role.is_batch_norm else "affine"
    elif isinstance(role, Linear):
        kind = f"conv{'_transpose' if role.is_transposed else ''}{rank_of(node) - 2}d" if kind == "convolution" else kind
        module = module or constants.get(role.weight, "").rpartition(".")[0]
    return Operator(node.name, module, kind, _all_inputs(node), node.name, role, *_memory(node), source_of(node))


def _reads_shape_only(user: torch.fx.Node, node: torch.fx.Node) -> bool:
    """Return whether a call reads the shape of ``node`` and none of its numbers."""
    kind = operator_kind(user)
    return kind in _SIZES or (kind in _LIKE and user.args[0] is not node)


def _is_aten(node: torch.fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target.namespace == "aten"


def _memory(node: torch.fx.Node) -> tuple[tuple[str, ...], str | None]:
    """Return the inputs that a call writes to, and the one whose memory its output looks into."""
    if not isinstance(node.target, OpOverload):
        source = node.args[0] if node.target is python_operator.getitem and node.args else None
        return (), source.name if isinstance(source, torch.fx.Node) else None
    in_memory = memory_arguments(node.target)
    if not in_memory:
        return (), None
    writes, alias = [], None
    given = arguments_of(node)
    for name, is_written in in_memory:
        value = given.get(name)
        if isinstance(value, torch.fx.Node):
            if is_written:
                writes.append(value.name)
            alias = value.name
    return tuple(writes), alias


def _all_inputs(node: torch.fx.Node) -> tuple[str, ...]:
    """Return the names of the nodes that a call reads, with repetition."""
    found: list[str] = []
    torch.fx.map_arg((node.args, node.kwargs), lambda argument: found.append(argument.name))
    return tuple(found)


def _storage(program: ExportedProgram, target: str) -> str:
    tensor = program.state_dict.get(target, program.constants.get(target))
    if not isinstance(tensor, torch.Tensor) or tensor.numel() == 0:
        return ""
    address = tensor.untyped_storage().data_ptr()
    return str(address) if tensor.is_cpu else f"{tensor.device}:{address}"
