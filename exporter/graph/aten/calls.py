"""Reading aten calls: their names, their arguments by name, and the modules that they belong to."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch._ops import OpOverload

__all__ = [
    "BATCH_NORMS",
    "RANDOM",
    "arguments_of",
    "dtype_name",
    "each_axis",
    "memory_arguments",
    "module_of",
    "module_type_of",
    "name_of",
    "operator_kind",
    "rank_of",
    "shape_of",
    "size_of",
    "source_of",
]

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

_FRAME = re.compile(r'^ *File "(.+)", line (\d+)', re.MULTILINE)
_TORCH = f"{Path(torch.__file__).parent}{os.sep}"


def arguments_of(node: torch.fx.Node) -> dict[str, Any]:
    """Return the arguments of an aten call by the names of its schema, defaults included."""
    args, kwargs = node.args, node.kwargs
    found = {}
    for position, (name, is_optional, default) in enumerate(_signature_of(node.target)):
        if position < len(args):
            found[name] = args[position]
        elif name in kwargs:
            found[name] = kwargs[name]
        elif is_optional:
            found[name] = default
    return found


@functools.cache
def _signature_of(target: Any) -> tuple[tuple[str, bool, Any], ...]:  # noqa: ANN401 - an operator of torch's
    """Return the names of an operator's arguments, whether each has a default, and which."""
    schema = target._schema  # noqa: SLF001 - torch has no public name for it
    return tuple((argument.name, argument.has_default_value(), argument.default_value) for argument in schema.arguments)


@functools.cache
def memory_arguments(target: OpOverload) -> tuple[tuple[str, bool], ...]:
    """Return the arguments whose memory an operator's output may look into, each with whether the operator writes to it."""
    schema = target._schema  # noqa: SLF001 - torch has no public name for it
    return tuple((argument.name, bool(argument.alias_info.is_write)) for argument in schema.arguments if argument.alias_info is not None)


def operator_kind(node: torch.fx.Node) -> str:
    """Return the short name of a call: ``conv2d`` for ``aten.conv2d.default``."""
    target = node.target
    kind: str = target.overloadpacket.__name__ if isinstance(target, OpOverload) else str(getattr(target, "__name__", target))
    return kind


def module_of(node: torch.fx.Node) -> str:
    """Return the name of the module that a call belongs to, as in ``named_modules``; empty for the outermost one."""
    return str(_innermost(node)[0])


def module_type_of(node: torch.fx.Node) -> str:
    """Return the class of the module that a call belongs to, as its qualified name; empty where the graph does not say."""
    kind = _innermost(node)[1]
    return kind if isinstance(kind, str) else f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', kind)}"


def _innermost(node: torch.fx.Node) -> tuple[str, Any]:
    """Return name and class of the module that a call belongs to, both empty where the graph does not say."""
    stack = node.meta.get("nn_module_stack")
    return next(reversed(stack.values())) if stack else ("", "")


def source_of(node: torch.fx.Node) -> str:
    """Return the line of the network's code that makes a call, ``net.py:12``; empty where the graph does not say.

    Of the files around it the last is meant that is not torch's own, as it is called from the current folder or from where packages lie.
    """
    path, line = _last_frame(node.meta.get("stack_trace") or "")
    return f"{_short(path, os.getcwd())}:{line}" if path else ""  # noqa: PTH109 - a text will do


@functools.lru_cache(maxsize=4096)
def _last_frame(trace: str) -> tuple[str, str]:
    """Return file and line of the last frame that is not torch's own; what a network repeats has the same traces."""
    return next(((path, line) for path, line in reversed(_FRAME.findall(trace)) if not path.startswith(_TORCH)), ("", ""))


@functools.lru_cache(maxsize=1024)
def _short(path: str, folder: str) -> str:
    _, packages, name = path.replace("\\", "/").rpartition("-packages/")
    if packages:
        return name
    try:
        return Path(path).relative_to(folder).as_posix()
    except ValueError:
        return Path(path).name


def rank_of(argument: object) -> int:
    """Return the number of axes of the tensor that a node makes, -1 for anything else."""
    tensor = argument.meta.get("val") if isinstance(argument, torch.fx.Node) else None
    return tensor.dim() if isinstance(tensor, torch.Tensor) else -1


def shape_of(tensor: torch.Tensor) -> tuple[int | str, ...]:
    """Return the shape of a tensor, with texts for sizes that are known only at run time."""
    return tuple(map(size_of, tensor.shape))


@functools.cache
def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype: ``float32``."""
    return str(dtype).removeprefix("torch.")


def size_of(size: int | torch.SymInt) -> int | str:
    """Return a size, as a text where it is known only at run time."""
    return size if isinstance(size, int) else _text_of(size.node.expr)


@functools.lru_cache(maxsize=1024)
def _text_of(expression: Any) -> str:  # noqa: ANN401 - of sympy
    return str(expression)


def name_of(argument: object) -> str | None:
    """Return the name of a node, None for anything else."""
    return argument.name if isinstance(argument, torch.fx.Node) else None


def each_axis(sizes: Any, count: int) -> tuple[int, ...]:  # noqa: ANN401 - what a call may be given: a number, or one or several in a list
    """Return one number for each of ``count`` axes."""
    given = tuple(sizes) if isinstance(sizes, (list, tuple)) else (sizes,)
    return given * count if len(given) == 1 else given
