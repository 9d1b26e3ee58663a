"""Names of outputs: the configured ones, else the network's own keys, else ``output``, ``output_1``, ..."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from exporter.artifacts import TensorSpec
from exporter.errors import ConfigError, ExportError

__all__ = ["output_specs"]


def output_specs(program: ExportedProgram, configured: tuple[str, ...], axis_names: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    """Return name, shape and dtype of every output of ``program``, flattened.

    Keys of dictionaries and fields of named tuples become names, joined with a full stop where they are nested; positions in
    plain tuples and lists become ``output``, ``output_1``, ...

    Args:
        program: the traced network.
        configured: names that replace the network's own; empty or one for each output.
        axis_names: symbol -> name of a dynamic axis.

    Raises:
        ExportError: an output is not a tensor (E336).
        ConfigError: the number of configured names does not fit, or a name occurs twice (E332).
    """
    tree = program.call_spec.out_spec
    results = [value for node in program.graph.nodes if node.op == "output" for value in node.args[0]]
    results = results[len(results) - len(program.graph_signature.user_outputs) :]
    own = _own_names(tree)
    names = configured or tuple(own)
    if len(names) != len(results) or len(set(names)) != len(names):
        facts = {
            "at": "model -> outputs",
            "found": ", ".join(names),
            "expected": f"{len(results)} different names; the network's own are {', '.join(own)}",
        }
        raise ConfigError("E332", "the names of the outputs do not fit the network", facts=facts)
    specs = []
    for name, result in zip(names, results, strict=True):
        tensor = result.meta.get("val") if isinstance(result, torch.fx.Node) else result
        if not isinstance(tensor, torch.Tensor):
            facts = {"output": name, "found": type(tensor).__name__, "expected": "a tensor"}
            raise ExportError(
                "E336",
                "the network returns something that is not a tensor",
                facts=facts,
                help="wrap it in a module whose forward returns tensors only",
            )
        shape = tuple(_axis(size, axis_names) for size in tensor.shape)
        specs.append(TensorSpec(name, shape, str(tensor.dtype).removeprefix("torch.")))
    return tuple(specs)


def _axis(size: int | torch.SymInt, names: Mapping[str, str]) -> int | str:
    if not isinstance(size, torch.SymInt):
        return int(size)
    return re.sub(r"\b[A-Za-z_]\w*\b", lambda match: names.get(match[0], match[0]), str(size))


def _own_names(tree: pytree.TreeSpec) -> list[str]:
    structure = pytree.tree_unflatten(list(range(tree.num_leaves)), tree)
    paths = [path for _, path in sorted(_leaves(structure, ()))]
    names: list[str] = []
    num_plain = 0
    for path in paths:
        if all(isinstance(step, int) for step in path):
            names.append(f"output_{num_plain}" if num_plain else "output")
            num_plain += 1
        else:
            names.append(".".join(str(step) for step in path))
    return names


def _leaves(structure: Any, path: tuple[str | int, ...]) -> Iterator[tuple[int, tuple[str | int, ...]]]:  # noqa: ANN401 - any container
    if isinstance(structure, int):
        yield structure, path
        return
    steps: list[tuple[str | int, Any]]
    if isinstance(structure, Mapping):
        steps = [(str(key), value) for key, value in structure.items()]
    elif hasattr(structure, "_fields"):
        steps = [(name, getattr(structure, name)) for name in structure._fields]
    elif dataclasses.is_dataclass(structure):
        steps = [(entry.name, getattr(structure, entry.name)) for entry in dataclasses.fields(structure)]
    elif isinstance(structure, (list, tuple)):
        steps = list(enumerate(structure))
    else:
        return
    for step, value in steps:
        yield from _leaves(value, (*path, step))
