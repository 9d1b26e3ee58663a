"""Checks of a folded graph that need no numbers: what is left, what came in, what it costs, and that it is the same from outside.

They look at the two programs, not at the plan: an error in carrying a plan out shows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch.export import ExportedProgram

from exporter.artifacts import Graph, Outcome, Verdict
from exporter.config import FoldConfig
from exporter.graph.aten.calls import dtype_name, operator_kind
from exporter.graph.aten.reading import abstract_graph, count_batch_norms, nested_batch_norms
from exporter.graph.cost import cost_of_graph

__all__ = ["check_structure"]

_WITH_BORDER = {"add", "unsqueeze"}
_WITH_ONES = {"cat", "flatten", "ones_like", "slice", "unflatten"}
"""What carries a border, or a bias that a matrix product cannot take, and a channel of ones."""


def check_structure(graph: Graph, config: FoldConfig) -> Verdict:
    """Return the verdict on the structure of the folded program beside the unfolded one.

    BatchNorms left are those that were refused; no kind of operator is new, but for those that a border or a channel of ones
    is written with; FLOPs are not more, unless fewer bytes are moved, the level is ``aggressive``, or the normalisation of an
    input was folded; tensors keep their dtype, and inputs and outputs their names, shapes and dtypes.
    """
    start = time.perf_counter()
    problems = [*_batch_norms(graph), *_kinds(graph), *_costs(graph, config), *_tensors(graph), *_ends(graph)]
    outcome = Outcome.FAIL if problems else Outcome.PASS
    return Verdict("structure", "torch-fused", outcome, "; ".join(problems) or _passed(graph), seconds=time.perf_counter() - start)


def _passed(graph: Graph) -> str:
    left = f"{count_batch_norms(graph.folded_program)} BatchNorm left, as planned"
    flops = f"FLOPs {_flops(graph.unfused):.4g} → {_flops(graph.folded_program):.4g}"
    return f"{left} · no other operators than before · {flops} · the same inputs and outputs"


def _batch_norms(graph: Graph) -> Iterator[str]:
    found = count_batch_norms(graph.folded_program) + sum(1 for _ in nested_batch_norms(graph.folded_program))
    if found != len(graph.refusals):
        yield f"{found} BatchNorms are left, {len(graph.refusals)} were refused"


def _kinds(graph: Graph) -> Iterator[str]:
    before, after = _kinds_of(graph.unfused), _kinds_of(graph.folded_program)
    allowed = _WITH_BORDER | (_WITH_ONES if "ones_like" in after and "ones_like" not in before else set())
    new = sorted(after - before - allowed)
    if new:
        yield f"operators that were not there before: {', '.join(new)}"


def _costs(graph: Graph, config: FoldConfig) -> Iterator[str]:
    before, after = (cost_of_graph(abstract_graph(program)) for program in (graph.unfused, graph.folded_program))
    if after.flops > before.flops and after.bytes >= before.bytes and config.level != "aggressive" and not config.input:
        yield f"FLOPs {before.flops:.4g} → {after.flops:.4g} at the level {config.level}, and no fewer bytes are moved"


def _tensors(graph: Graph) -> Iterator[str]:
    before, after = graph.unfused.state_dict, graph.folded_program.state_dict
    for name, tensor in after.items():
        if name in before and before[name].dtype != tensor.dtype:
            yield f"{name} is of {dtype_name(tensor.dtype)} and was of {dtype_name(before[name].dtype)}"
        elif name in before and before[name].dim() != tensor.dim():
            yield f"{name} has {tensor.dim()} axes and had {before[name].dim()}"


def _ends(graph: Graph) -> Iterator[str]:
    for what, index in (("inputs", 0), ("outputs", 1)):
        before, after = (_specs(program)[index] for program in (graph.unfused, graph.folded_program))
        if before != after:
            yield f"the {what} are {', '.join(after)} and were {', '.join(before)}"


def _flops(program: ExportedProgram) -> int:
    return cost_of_graph(abstract_graph(program)).flops


def _kinds_of(program: ExportedProgram) -> set[str]:
    return {operator_kind(node) for node in program.graph.nodes if node.op == "call_function"}


def _specs(program: ExportedProgram) -> tuple[list[str], list[str]]:
    """Return what goes in and what comes out: names of inputs, shapes and dtypes."""
    nodes = {node.name: node for node in program.graph.nodes}
    signature = program.graph_signature
    inputs = [f"{name} {_shape(nodes[str(name)])}" for name in signature.user_inputs]
    return inputs, [_shape(nodes[str(name)]) for name in signature.user_outputs]


def _shape(node: torch.fx.Node) -> str:
    tensor = node.meta.get("val")
    return f"{dtype_name(tensor.dtype)}[{', '.join(map(str, tensor.shape))}]" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
