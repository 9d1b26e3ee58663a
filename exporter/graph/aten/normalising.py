"""Normalising inputs in a traced program: ``x s + t`` right behind an input, with constants that are no part of the state dict.

The numbers in the program are rounded to the dtype of the input; the fold takes the exact ones.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from exporter.artifacts import TensorSpec
from exporter.errors import ConfigError
from exporter.factories.normalisation import Normalisation, parse_normalisations
from exporter.graph.algebra import Float64
from exporter.graph.aten.editing import rebuilt_program

__all__ = ["Normalised", "normalised_program", "normalising_calls"]

_PREFIX = "normalised_"


@dataclass(frozen=True, slots=True, eq=False)
class Normalised:
    """A program that takes raw pixels.

    Attributes:
        exact: name of a constant -> its numbers before they were rounded.
        calls: the calls that normalise, each with its input; they have to be folded.
    """

    program: ExportedProgram
    exact: Mapping[str, Float64] = field(default_factory=dict)
    calls: Mapping[str, str] = field(default_factory=dict)


def normalised_program(program: ExportedProgram, inputs: tuple[TensorSpec, ...], texts: tuple[str, ...]) -> Normalised:
    """Return ``program`` with its inputs normalised as ``texts`` say.

    Args:
        program: takes normalised inputs.
        inputs: their names, in order.
        texts: of ``[fold] input``.

    Raises:
        ConfigError: a text is none (E366), or does not fit the inputs (E367).
    """
    wanted = parse_normalisations(texts, tuple(spec.name for spec in inputs))
    if not wanted:
        return Normalised(program)
    graph = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    graph.output(graph.graph_copy(program.graph, copies))
    for old, new in copies.items():
        new.meta = dict(old.meta)
    ends = [next(node for node in reversed(each.nodes) if node.op == "output") for each in (program.graph, graph)]
    ends[1].meta = dict(ends[0].meta)
    specs = [copy.copy(spec) for spec in program.graph_signature.input_specs]
    constants = dict(program.constants)
    added: list[InputSpec] = []
    nodes = {node.name: node for node in graph.nodes}
    first = next(iter(graph.nodes))
    for name, (data, numbers) in _placed(program, inputs, wanted).items():
        node = nodes[name]
        made = []
        for part, exact in numbers.items():
            target = f"{_PREFIX}{name}_{part}"
            constants[target] = torch.from_numpy(exact).to(data.dtype)
            with graph.inserting_before(first):
                placeholder = graph.placeholder(f"c_{target}")
            placeholder.meta = {"val": _fake_like(data, tuple(exact.shape))}
            added.append(InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(placeholder.name), target, None))
            made.append(placeholder)
        last = [each for each in graph.nodes if each.op == "placeholder"][-1]
        readers = list(node.users)
        with graph.inserting_after(last):
            product = graph.create_node("call_function", torch.ops.aten.mul.Tensor, (node, made[0]), name=f"scaled_{name}")
        with graph.inserting_after(product):
            shifted = graph.create_node("call_function", torch.ops.aten.add.Tensor, (product, made[1]), name=f"{_PREFIX}{name}")
        for call in (product, shifted):
            call.meta = {"val": node.meta["val"]}
        for reader in readers:
            reader.replace_input_with(node, shifted)
    renamed = {name: f"{_PREFIX}{name}" for name in _placed(program, inputs, wanted)}  # where an input is an output
    changed = rebuilt_program(program, graph, [*added, *specs], dict(program.state_dict), constants, renamed)
    return normalising_calls(changed, inputs, texts)


def normalising_calls(program: ExportedProgram, inputs: tuple[TensorSpec, ...], texts: tuple[str, ...]) -> Normalised:
    """Return what normalises in a program that ``normalised_program`` made, with the exact numbers."""
    wanted = parse_normalisations(texts, tuple(spec.name for spec in inputs))
    placed = _placed(program, inputs, wanted)
    exact = {f"{_PREFIX}{name}_{part}": array for name, (_, numbers) in placed.items() for part, array in numbers.items()}
    return Normalised(program, exact, {f"{_PREFIX}{name}": name for name in placed})


def _placed(
    program: ExportedProgram, inputs: tuple[TensorSpec, ...], wanted: Mapping[str, Normalisation]
) -> dict[str, tuple[torch.Tensor, dict[str, Float64]]]:
    """Return placeholder -> its tensor, and ``s`` and ``t`` shaped to be broadcast along axis 1."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    found = {}
    for name, spec in zip(program.graph_signature.user_inputs, inputs, strict=True):
        entry = wanted.get(spec.name)
        if entry is None:
            continue
        data = nodes[str(name)].meta["val"]
        channels = data.shape[1] if data.dim() > 1 else 0
        if not data.is_floating_point() or not isinstance(channels, int) or entry.num_channels not in {1, channels}:
            facts = {
                "at": "fold -> input",
                "found": entry.text,
                "expected": f"one number, or one for each channel of {spec.name} {list(spec.shape)} {spec.dtype}",
            }
            raise ConfigError("E367", "a normalisation does not fit its input", facts=facts)
        s, t = (np.asarray(part, dtype=np.float64).reshape(-1, *[1] * (data.dim() - 2)) for part in entry.numbers(channels))
        found[str(name)] = (data, {"scale": s, "shift": t})
    return found


def _fake_like(data: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    with data.fake_mode if hasattr(data, "fake_mode") else torch.device("cpu"):
        return torch.empty(shape, dtype=data.dtype)
