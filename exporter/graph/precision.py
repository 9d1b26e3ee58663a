"""The same program in float64, where nothing but an error of ours can separate folded from unfolded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from exporter.config import FoldConfig
from exporter.graph.aten.constants import compute_constants, in_float64
from exporter.graph.aten.editing import copied_graph, rebuilt_program
from exporter.graph.aten.reading import ProgramConstants, abstract_graph
from exporter.graph.aten.surgery import folded_program
from exporter.graph.planning import make_plan

__all__ = ["fold_error_in_float64", "program_in_float64"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def program_in_float64(program: ExportedProgram) -> ExportedProgram:
    """Return ``program`` with every floating tensor, and every floating dtype named in the graph, in float64; nested graphs too."""
    graph = _graph_in_float64(program.graph)
    state = {name: _widened(tensor) for name, tensor in program.state_dict.items()}
    constants = {name: _widened(value) for name, value in program.constants.items()}
    root = _nested_in_float64(program.graph_module)
    return rebuilt_program(program, graph, list(program.graph_signature.input_specs), state, constants, {}, root=root)


def _graph_in_float64(given: torch.fx.Graph) -> torch.fx.Graph:
    graph, copies = copied_graph(given)
    for new in copies.values():
        fake = new.meta.get("val")
        if isinstance(fake, torch.Tensor) and fake.dtype in _FLOATS:
            new.meta["val"] = fake.to(torch.float64)
        if new.op == "call_function":
            new.args, new.kwargs = in_float64(new.args), in_float64(new.kwargs)
            if _makes_default_dtype(new, fake):
                new.kwargs = {**new.kwargs, "dtype": torch.float64}  # else it would be float32
    return graph


def _nested_in_float64(module: torch.fx.GraphModule) -> torch.nn.Module:
    """Return a root with the graphs that calls of ``module`` take as arguments (``torch.cond``, a part under autocast) in float64."""
    root = torch.nn.Module()
    for name, child in module.named_children():
        inner = torch.fx.GraphModule(_nested_in_float64(child), _graph_in_float64(child.graph)) if isinstance(child, torch.fx.GraphModule) else child
        setattr(root, name, inner)
    return root


def fold_error_in_float64(program: ExportedProgram, inputs: Sequence[torch.Tensor], config: FoldConfig) -> float:
    """Return the largest ``max|folded - unfolded| / max|unfolded|`` over all outputs, both in float64, the fold not rounded.

    Rounding the folded weights to float32 is left out of it on purpose: what remains is the error of the fold itself, which is
    at most 1e-10 unless the network multiplies rounding errors.
    """
    unfused = program_in_float64(program)
    computed = compute_constants(unfused)
    plan = make_plan(abstract_graph(computed.program), ProgramConstants(computed.program, computed.exact), config)
    fused = folded_program(computed.program, plan)
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]
    with torch.inference_mode():
        expected, got = (tree_leaves(each.module()(*wide)) for each in (unfused, fused))
    worst = 0.0
    for reference, candidate in zip(expected, got, strict=True):
        scale = float(reference.abs().max()) if reference.numel() else 0.0
        error = float((candidate - reference).abs().max()) if reference.numel() else 0.0
        worst = max(worst, error / scale if scale else error)
        if not torch.equal(torch.isfinite(reference), torch.isfinite(candidate)):
            return float("inf")
    return worst


def _makes_default_dtype(node: torch.fx.Node, fake: object) -> bool:
    """Return whether a call makes a floating tensor out of no tensor, of the default dtype."""
    schema = getattr(node.target, "_schema", None)
    if not isinstance(fake, torch.Tensor) or fake.dtype not in _FLOATS or schema is None:
        return False
    return any(argument.name == "dtype" for argument in schema.arguments) and not any(
        isinstance(given.meta.get("val"), torch.Tensor) for given in node.all_input_nodes
    )


def _widened(value: Any) -> Any:  # noqa: ANN401 - a tensor, or another constant, which stays
    if not isinstance(value, torch.Tensor) or value.dtype not in _FLOATS:
        return value
    wide = value.detach().to(torch.float64)
    return torch.nn.Parameter(wide, requires_grad=False) if isinstance(value, torch.nn.Parameter) else wide
