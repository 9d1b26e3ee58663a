"""Checks of a folded file that need no numbers: what is left, what came in, what it costs, and that it is the same from outside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from exporter.artifacts import FoldedOnnx, OnnxModel, Outcome, Verdict
from exporter.config import FoldConfig
from exporter.onnx_export.reading import OnnxFile, parse

__all__ = ["check_folded_structure"]

_WITH_BIAS = {"Add", "Identity"}
"""What carries a border, or a bias that a product cannot take; an output that keeps its name."""
_WITH_ONES = {"Cast", "Concat", "ConstantOfShape", "Reshape", "Shape", "Slice"}
"""What carries a channel of ones."""


def check_folded_structure(given: OnnxFile, written: OnnxModel, folded: FoldedOnnx, config: FoldConfig) -> Verdict:
    """Return the verdict on the structure of the file that was written beside that of the given one.

    BatchNorms left are at most those that were refused; no kind of operator is new, but for those that a bias, a border or a channel of
    ones is written with; FLOPs are not more, unless fewer bytes are moved or the level is ``aggressive``; inputs and outputs keep their names,
    shapes and dtypes.
    """
    problems = [*_batch_norms(written, folded), *_kinds(given.message, written), *_costs(folded, config), *_ends(given.model, written)]
    flops = f"FLOPs {folded.cost_before.flops:.4g} → {folded.cost_after.flops:.4g}"
    passed = f"{written.num_batch_norms} BatchNorm left, as planned · no other operators than before · {flops} · the same inputs and outputs"
    return Verdict("structure", "onnx-fused", Outcome.FAIL if problems else Outcome.PASS, "; ".join(problems) or passed)


def _batch_norms(written: OnnxModel, folded: FoldedOnnx) -> Iterator[str]:
    if written.num_batch_norms > len(folded.refusals):
        yield f"{written.num_batch_norms} BatchNorms are left, {len(folded.refusals)} were refused"


def _kinds(given: onnx.ModelProto, written: OnnxModel) -> Iterator[str]:
    before, after = _kinds_of(given), _kinds_of(parse(written.path))
    new = sorted(after - before - _WITH_BIAS - (_WITH_ONES if "Concat" in after else set()))
    if new:
        yield f"operators that were not there before: {', '.join(new)}"


def _costs(folded: FoldedOnnx, config: FoldConfig) -> Iterator[str]:
    before, after = folded.cost_before, folded.cost_after
    if after.flops > before.flops and after.bytes >= before.bytes and config.level != "aggressive":
        yield f"FLOPs {before.flops:.4g} → {after.flops:.4g} at the level {config.level}, and no fewer bytes are moved"


def _ends(given: OnnxModel, written: OnnxModel) -> Iterator[str]:
    for what, before, after in (("inputs", given.inputs, written.inputs), ("outputs", given.outputs, written.outputs)):
        if before != after:
            yield f"the {what} are {', '.join(map(str, after))} and were {', '.join(map(str, before))}"


def _kinds_of(model: onnx.ModelProto) -> set[str]:
    return set(_kinds_in(model.graph.node)) | {kind for function in model.functions for kind in _kinds_in(function.node)}


def _kinds_in(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield f"{node.domain}::{node.op_type}" if node.domain not in {"", "ai.onnx"} else node.op_type
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _kinds_in(graph.node)
