"""Computing ahead what does not depend on the inputs: normalised weights, frozen statistics, standardised weights.

``weight_norm`` computes a weight from two parameters, a frozen BatchNorm its factor from four buffers, a weight-standardising
convolution runs a BatchNorm over its weight. All of that is constant in eval mode, so it is computed once, in float64, and rounded
once; then the folds see weights and numbers like any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from exporter.graph.algebra import Float64
from exporter.graph.aten.calls import BATCH_NORMS, RANDOM, module_of, operator_kind
from exporter.graph.aten.editing import ProgramEditor
from exporter.graph.aten.products import MATRIX_PRODUCTS
from exporter.graph.aten.reading import constant_tensor

__all__ = ["Computed", "compute_constants", "in_float64", "with_exact"]

_PRODUCTS = {*(f"conv{n}d" for n in (1, 2, 3)), *(f"conv_transpose{n}d" for n in (1, 2, 3)), "convolution", "linear", "addmm", *MATRIX_PRODUCTS}
_PER_CHANNEL = {"mul", "add", "sub", "div", "mul_", "add_", "sub_", "div_"}
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_KINDS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """A program whose weights are all constants.

    Attributes:
        program: the changed copy, or the program itself where there was nothing to compute.
        exact: name of a computed constant -> its numbers before they were rounded.
        batch_norms: names of the modules of the BatchNorms that were computed ahead.
        nodes: name of a computed constant -> the node of the given program that it stands for.
    """

    program: ExportedProgram
    exact: Mapping[str, Float64] = field(default_factory=dict)
    batch_norms: tuple[str, ...] = ()
    nodes: Mapping[str, str] = field(default_factory=dict)


def compute_constants(program: ExportedProgram) -> Computed:
    """Return ``program`` with every constant computed that is a weight, a bias, or a number per channel."""
    constant = _constant_nodes(program)
    wanted = [node for node in program.graph.nodes if node in constant and node.op == "call_function" and _is_wanted(node, constant)]
    if not wanted:
        return Computed(program)
    values: dict[torch.fx.Node, Any] = {}
    editor = ProgramEditor(program)
    exact: dict[str, Float64] = {}
    nodes: dict[str, str] = {}
    with torch.no_grad():
        for node in wanted:
            numbers = _evaluated(program, node, constant, values).detach().to("cpu", torch.float64).numpy()
            like = next(_placeholders_below(node))
            name = ".".join(filter(None, (module_of(node), f"computed_{node.name}")))
            created = editor.add_constant_(editor.nodes[like.name], numbers, name, dtype=node.meta["val"].dtype)
            exact[editor.target_of(created)] = numbers
            nodes[editor.target_of(created)] = node.name
            editor.replace_(node.name, created)
    changed = editor.finished()
    left = {node.name for node in changed.graph.nodes}
    gone = tuple(module_of(node) or node.name for node in program.graph.nodes if operator_kind(node) in BATCH_NORMS and node.name not in left)
    return Computed(changed, exact, gone, nodes)


def with_exact(computed: Computed, exact: Mapping[str, Float64]) -> Computed:
    """Return ``computed`` with the numbers of further constants before they were rounded."""
    return dataclasses.replace(computed, exact={**exact, **computed.exact})


def _constant_nodes(program: ExportedProgram) -> dict[torch.fx.Node, str]:
    """Return the nodes that depend on constants alone; for placeholders with the name of their tensor."""
    signature = program.graph_signature
    written = {*signature.buffers_to_mutate.values(), *getattr(signature, "parameters_to_mutate", {}).values()}
    targets = {spec.arg.name: spec.target for spec in signature.input_specs if spec.kind in _KINDS and spec.target is not None}
    found: dict[torch.fx.Node, str] = {}
    changed = {argument for node in program.graph.nodes if _is_mutable(node) for argument in node.all_input_nodes}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            target = targets.get(node.name)
            if target is not None and target not in written and node not in changed:
                found[node] = target
        elif node.op == "call_function" and all(argument in found for argument in node.all_input_nodes) and node not in changed and _is_pure(node):
            found[node] = ""
    return found


def _is_mutable(node: torch.fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and bool(node.target._schema.is_mutable)  # noqa: SLF001 - torch has no public name for it


def _is_pure(node: torch.fx.Node) -> bool:
    if not isinstance(node.target, OpOverload):
        return getattr(node.target, "__name__", "") == "getitem"
    kind = operator_kind(node)
    if node.target.namespace != "aten" or _is_mutable(node) or kind in RANDOM or kind == "dropout" or not node.all_input_nodes:
        return False
    return not (kind in BATCH_NORMS and len(node.args) > 5 and node.args[3] is not None and node.args[5] is True)  # would write its statistics


def _is_wanted(node: torch.fx.Node, constant: Mapping[torch.fx.Node, str]) -> bool:
    """Return whether something that is computed at run time reads this as a weight or a number per channel."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dtype not in _FLOATS or any(not isinstance(size, int) for size in value.shape):
        return False
    readers = [operator_kind(user) for user in node.users if user not in constant]
    if any(kind in _PRODUCTS or kind in BATCH_NORMS for kind in readers):
        return True
    return sum(size != 1 for size in value.shape) <= 1 and any(kind in _PER_CHANNEL for kind in readers)


def _placeholders_below(node: torch.fx.Node) -> Iterator[torch.fx.Node]:
    todo = [node]
    while todo:
        here = todo.pop()
        if here.op == "placeholder":
            yield here
        todo += reversed(here.all_input_nodes)


def _evaluated(program: ExportedProgram, node: torch.fx.Node, constant: Mapping[torch.fx.Node, str], values: dict[torch.fx.Node, Any]) -> Any:  # noqa: ANN401 - a tensor, or several
    todo = [node]
    while todo:
        here = todo[-1]
        if here in values:
            todo.pop()
        elif here.op == "placeholder":
            tensor = constant_tensor(program, constant[here])
            values[here] = tensor.detach().double() if tensor.dtype in _FLOATS else tensor.detach()
        elif missing := [argument for argument in here.all_input_nodes if argument not in values]:
            todo += missing
        else:
            arguments = torch.fx.map_arg((here.args, here.kwargs), values.__getitem__)
            args, kwargs = in_float64(arguments)
            values[here] = here.target(*args, **kwargs)  # type: ignore[operator]
    return values[node]


def in_float64(arguments: Any) -> Any:  # noqa: ANN401 - anything that a call may be given
    """Return the arguments of a call with float64 for every floating dtype that they name."""
    if isinstance(arguments, torch.dtype):
        return torch.float64 if arguments in _FLOATS else arguments
    if isinstance(arguments, (list, tuple)):
        return type(arguments)(in_float64(item) for item in arguments)
    if isinstance(arguments, dict):
        return {name: in_float64(item) for name, item in arguments.items()}
    return arguments
