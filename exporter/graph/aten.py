"""Adapter: an exported program of aten calls -> the abstract graph, and the numbers of its constants.

An exported program keeps in-place calls (``relu_``, ``add_``) as they were written, so a tensor that anything may write to is
no constant, and a BatchNorm in training mode is there as what it is.
"""

from __future__ import annotations

import operator as python_operator
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from exporter.graph.abstract import AbstractGraph, ChannelAffine, Linear, Operator, Training, Value
from exporter.graph.algebra import Float64

__all__ = ["ProgramConstants", "abstract_graph", "arguments_of", "constant_tensor", "count_calls", "module_of", "nested_batch_norms", "operator_kind"]

_CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
_BATCH_NORMS = {"batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"}
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_CONSTANT_KINDS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def abstract_graph(program: ExportedProgram) -> AbstractGraph:
    """Return the graph of ``program`` as the planner sees it."""
    nodes = list(program.graph.nodes)
    targets = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.kind in _CONSTANT_KINDS and spec.target is not None}
    written = {*program.graph_signature.buffers_to_mutate.values(), *getattr(program.graph_signature, "parameters_to_mutate", {}).values()}
    results = {arg for node in nodes if node.op == "output" for arg in node.all_input_nodes}
    values, operators = [], []
    names = _Names()
    for node in nodes:
        if node.op == "output":
            continue
        tensor = node.meta.get("val")
        value = Value(node.name, rank=0, dtype="", is_output=node in results, label=node.name)
        if isinstance(tensor, torch.Tensor):
            value.rank, value.dtype, value.shape = tensor.dim(), str(tensor.dtype).removeprefix("torch."), tuple(_size(size) for size in tensor.shape)
        value.users = [user.name for user in node.users if user.op != "output"]
        if node.op == "placeholder":
            target = targets.get(node.name)
            if target is None:
                value.label = f"the input {node.name}"
            else:
                value.label, value.is_constant, value.storage = target, target not in written, _storage(program, target)
        else:
            value.producer = node.name
            operators.append(_operator(node, targets, names))
        values.append(value)
    return AbstractGraph(values, operators)


class ProgramConstants:
    """The numbers of a program's parameters, buffers and constants."""

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self._targets = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs}

    def read(self, value: str) -> Float64:
        """Return the numbers of the placeholder ``value``; every floating dtype fits float64 exactly."""
        exact: Float64 = self._tensor(value).detach().to("cpu", torch.float64).numpy().astype(np.float64, copy=False)
        return exact

    def dtype(self, value: str) -> str:
        """Return the dtype of the placeholder ``value``, without ``torch.``."""
        return str(self._tensor(value).dtype).removeprefix("torch.")

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


def arguments_of(node: torch.fx.Node) -> dict[str, Any]:
    """Return the arguments of an aten call by the names of its schema, defaults included."""
    schema = node.target._schema  # type: ignore[union-attr]  # noqa: SLF001 - torch has no public name for it
    found = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args):
            found[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            found[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            found[argument.name] = argument.default_value
    return found


def operator_kind(node: torch.fx.Node) -> str:
    """Return the short name of a call: ``conv2d`` for ``aten.conv2d.default``."""
    if isinstance(node.target, OpOverload):
        return str(node.target._schema.name).partition("::")[2]  # noqa: SLF001 - torch has no public name for it
    return str(getattr(node.target, "__name__", node.target))


def module_of(node: torch.fx.Node) -> str:
    """Return the name of the module that a call belongs to, as in ``named_modules``; empty for the outermost one."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


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
                if node.op == "call_function" and operator_kind(node) in _BATCH_NORMS:
                    yield module_of(node) or f"{name}.{node.name}"


class _Names:
    """Makes names of BatchNorms unique: a module that is called twice is ``bn`` and ``bn (call 2)``."""

    def __init__(self) -> None:
        self._count: dict[str, int] = {}

    def unique(self, name: str) -> str:
        self._count[name] = self._count.get(name, 0) + 1
        return name if self._count[name] == 1 else f"{name} (call {self._count[name]})"


def _operator(node: torch.fx.Node, targets: Mapping[str, str], names: _Names) -> Operator:
    inputs = tuple(_all_inputs(node))
    kind, module = operator_kind(node), module_of(node)
    role: Linear | ChannelAffine | None = None
    if node.op == "call_function" and isinstance(node.target, OpOverload) and node.target.namespace == "aten":
        if kind in _BATCH_NORMS:
            role = _batch_norm(node, kind)
            if role is not None:
                owner = targets.get(role.mean or role.gamma or "", "").rpartition(".")[0]
                module, kind = names.unique(owner or module or node.name), "batch_norm"
        else:
            role = _linear(node, kind)
            kind = _kind_of_convolution(node) if role is not None and kind == "convolution" else kind
            if role is not None and not module:
                module = targets.get(role.weight, "").rpartition(".")[0]
    return Operator(node.name, module, kind, inputs, node.name, role)


def _batch_norm(node: torch.fx.Node, kind: str) -> ChannelAffine | None:
    call = arguments_of(node)
    if kind != "batch_norm":
        used = {user.args[1] for user in node.users if user.target is python_operator.getitem}
        if used - {0} or len(used) != len(node.users):
            return None  # the saved statistics are read as well
    mean, var = _name(call["running_mean"]), _name(call["running_var"])
    training = Training.RUNNING
    if call.get("training", False):
        training = Training.UNTRACKED if mean is None or var is None else Training.BATCH
    data = _name(call["input"])
    eps = call.get("eps", call.get("epsilon"))
    if data is None or not isinstance(eps, (int, float)):
        return None
    return ChannelAffine(data, _name(call["weight"]), _name(call["bias"]), mean, var, float(eps), training, axis=1)


def _linear(node: torch.fx.Node, kind: str) -> Linear | None:
    result = node.meta.get("val")
    if not isinstance(result, torch.Tensor) or result.dtype not in _FLOATS:
        return None
    call, rank = arguments_of(node), result.dim()
    if kind in _CONVOLUTIONS or (kind == "convolution" and not call["transposed"]):
        data, weight, bias = (_name(call[name]) for name in ("input", "weight", "bias"))
        spatial = _CONVOLUTIONS.get(kind, _rank(call["weight"]) - 2)
        return _with_bias(data, weight, bias, call["bias"], weight_axis=0, output_axis=rank - 1 - spatial)
    if kind == "linear":
        data, weight, bias = (_name(call[name]) for name in ("input", "weight", "bias"))
        return _with_bias(data, weight, bias, call["bias"], weight_axis=0, output_axis=rank - 1) if _rank(call["weight"]) == 2 else None
    if kind == "addmm" and call.get("beta", 1) == 1 and call.get("alpha", 1) == 1 and _rank(call["self"]) == 1:
        bias_shape, shape = call["self"].meta["val"].shape, result.shape
        if bias_shape[0] == shape[1]:
            return _with_bias(_name(call["mat1"]), _name(call["mat2"]), _name(call["self"]), call["self"], weight_axis=1, output_axis=1)
    return None


def _with_bias(data: str | None, weight: str | None, bias: str | None, given: object, *, weight_axis: int, output_axis: int) -> Linear | None:
    if data is None or weight is None or (given is not None and bias is None):
        return None
    return Linear(data, weight, bias, weight_axis, output_axis)


def _kind_of_convolution(node: torch.fx.Node) -> str:
    return f"conv{_rank(arguments_of(node)['weight']) - 2}d"


def _rank(argument: object) -> int:
    tensor = argument.meta.get("val") if isinstance(argument, torch.fx.Node) else None
    return tensor.dim() if isinstance(tensor, torch.Tensor) else -1


def _name(argument: object) -> str | None:
    return argument.name if isinstance(argument, torch.fx.Node) else None


def _all_inputs(node: torch.fx.Node) -> Iterator[str]:
    """Yield the names of the nodes that a call reads, with repetition."""
    found: list[str] = []
    torch.fx.map_arg((node.args, node.kwargs), lambda argument: found.append(argument.name))
    yield from found


def _size(size: int | torch.SymInt) -> int | str:
    return size if isinstance(size, int) else str(size)


def _storage(program: ExportedProgram, target: str) -> str:
    tensor = program.state_dict.get(target, program.constants.get(target))
    if not isinstance(tensor, torch.Tensor) or tensor.numel() == 0:
        return ""
    return f"{tensor.device}:{tensor.untyped_storage().data_ptr()}"
