"""Names of outputs: the configured ones, else the network's own keys, else ``output``, ``output_1``, ..."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch.export import ExportedProgram

from exporter.artifacts import TensorSpec
from exporter.errors import ConfigError, ExportError
from exporter.factories.outputs import names_of_outputs
from exporter.graph.aten.calls import dtype_name

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
    own = names_of_outputs(tree)
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
        specs.append(TensorSpec(name, shape, dtype_name(tensor.dtype)))
    return tuple(specs)


def _axis(size: int | torch.SymInt, names: Mapping[str, str]) -> int | str:
    if not isinstance(size, torch.SymInt):
        return int(size)
    return re.sub(r"\b[A-Za-z_]\w*\b", lambda match: names.get(match[0], match[0]), str(size))
