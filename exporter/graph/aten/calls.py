"""Reading aten calls: their names, their arguments by name, and the modules that they belong to."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload

__all__ = ["BATCH_NORMS", "RANDOM", "arguments_of", "each_axis", "module_of", "module_type_of", "name_of", "operator_kind", "rank_of", "size_of"]

BATCH_NORMS = {"batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"}
"""Names of the calls that normalise by channel."""

RANDOM = {
    "bernoulli",
    "bernoulli_",
    "multinomial",
    "normal",
    "normal_",
    "rand",
    "rand_like",
    "randint",
    "randint_like",
    "randn",
    "randn_like",
    "randperm",
    "uniform_",
    "rrelu",
}
"""Names of the calls that draw random numbers, dropout apart."""


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


def module_type_of(node: torch.fx.Node) -> str:
    """Return the class of the module that a call belongs to, as its qualified name; empty where the graph does not say."""
    stack = node.meta.get("nn_module_stack") or {}
    kind = list(stack.values())[-1][1] if stack else ""
    return kind if isinstance(kind, str) else f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', kind)}"


def rank_of(argument: object) -> int:
    """Return the number of axes of the tensor that a node makes, -1 for anything else."""
    tensor = argument.meta.get("val") if isinstance(argument, torch.fx.Node) else None
    return tensor.dim() if isinstance(tensor, torch.Tensor) else -1


def size_of(size: int | torch.SymInt) -> int | str:
    """Return a size, as a text where it is known only at run time."""
    return size if isinstance(size, int) else str(size)


def name_of(argument: object) -> str | None:
    """Return the name of a node, None for anything else."""
    return argument.name if isinstance(argument, torch.fx.Node) else None


def each_axis(sizes: Any, count: int) -> tuple[int, ...]:  # noqa: ANN401 - what a call may be given: a number, or one or several in a list
    """Return one number for each of ``count`` axes."""
    given = tuple(sizes) if isinstance(sizes, (list, tuple)) else (sizes,)
    return given * count if len(given) == 1 else given
