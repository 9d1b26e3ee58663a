"""The tools, ours among them: each takes a case, folds, and says what became of it.

The tools that rewrite ONNX get the case they fold most in: shapes fixed, torch's export without its own optimiser, shape arithmetic and
biases computed ahead (`tidied`). What a tool made runs in float32, ONNX models in ONNX Runtime without its optimisations.
"""

from __future__ import annotations

import collections
import contextlib
import io
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch

from bench.zoo.case import Case, arrays_of, run_onnx
from bench.zoo.judgement import as_convolutions, count_in_torch, largest_error
from exporter.artifacts import Graph, Provenance, Refusal
from exporter.config import FoldConfig
from exporter.graph import fold, fold_error_in_float64
from exporter.graph.aten.constants import compute_constants
from exporter.graph.aten.reading import ProgramConstants, abstract_graph
from exporter.graph.planning import make_plan
from exporter.graph.rewrites.late_weight import rounded

__all__ = ["PEERS", "DoesNotApply", "Made"]


class DoesNotApply(Exception):
    """A tool for the networks of one library, and another one's."""


ROUNDS = 3
"""Our own fold is timed so often, after a first time that is noted apart."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a tool made.

    Attributes:
        left: BatchNorms that still run.
        as_convolutions: BatchNorms that run as a convolution of their own now.
        error: against float64, of the tool's network in float32.
        seconds: processor time of the fold alone.
        facts: what else there is to say of it.
    """

    left: int
    as_convolutions: int
    error: float
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)


def ours(case: Case, level: str) -> Made:
    """Fold the traced program."""
    config = config_of(level)
    traced = case.traced
    before = _peak_bytes(reset=True)
    with _timed() as first:
        graph = fold(traced, config, provenance=Provenance("graph"))
    added = _peak_bytes() - before
    clocks = []
    for _ in range(ROUNDS):
        with _timed() as clock:
            fold(traced, config, provenance=Provenance("graph"))
        clocks.append(clock["cpu"])
    plannings = []
    for _ in range(ROUNDS):
        with _timed() as clock:
            _plan_and_round(traced.program, config)
        plannings.append(clock["cpu"])
    weights = sum(tensor.numel() * tensor.element_size() for tensor in traced.program.state_dict.values())
    error = fold_error_in_float64(graph.unfused, (case.x,), config)
    count, y = count_in_torch(graph.folded_program.module(), case.x)
    facts = {"folded": len(graph.folded), "of": graph.num_batch_norms, "kept": kept(graph), "error in float64": error, "ran": count.batch_norms}
    facts["absorbed"] = len(graph.absorbed)
    facts |= {"memory": added / weights, "first_s": first["cpu"], "plan_s": statistics.median(plannings)}
    seconds = statistics.median(clocks)
    return Made(graph.num_batch_norms - len(graph.folded), 0, largest_error(arrays_of(y), case.reference), seconds, facts)


def _plan_and_round(program: torch.export.ExportedProgram, config: FoldConfig) -> None:
    """Do what a fold does of its own, without torch's copy of the graph, its code and its verifier."""
    computed = compute_constants(program)
    for new in make_plan(abstract_graph(computed.program), ProgramConstants(computed.program, computed.exact), config).numbers:
        rounded(new.given, "float32")


def ours_onnx(case: Case, level: str) -> Made:
    """Fold the ONNX model that torch exports with its optimiser off, and compare the plan with that of the traced program."""
    from exporter.graph import fold_onnx

    config = config_of(level)
    model = onnx.load_from_string(case.raw)
    with _timed() as clock:
        folded = fold_onnx(model, config, base=Path())
    made = _made_onnx(case, folded.model, clock["cpu"])
    computed = compute_constants(case.program)
    plan = make_plan(abstract_graph(computed.program), ProgramConstants(computed.program, computed.exact), config)
    differences = []
    num_aten = len(plan.folded) + len(computed.batch_norms)
    if num_aten != len(folded.folded):
        differences.append(f"{num_aten} folded in the traced program, {len(folded.folded)} in ONNX")
    reasons = [sorted(kept_of(refusals).items()) for refusals in (plan.refusals, folded.refusals)]
    if reasons[0] != reasons[1]:
        differences.append(f"kept in the traced program {dict(reasons[0])}, in ONNX {dict(reasons[1])}")
    facts = {"folded": len(folded.folded), "of": folded.num_batch_norms, "kept": kept(folded), "differences": differences}
    facts["absorbed"] = len(folded.absorbed)
    return Made(made.left, made.as_convolutions, made.error, made.seconds, facts)


def fx_fuse(case: Case, level: str) -> Made:  # noqa: ARG001 - one signature for all
    """Run `torch.fx.experimental.optimization.fuse`."""
    from torch.fx.experimental.optimization import fuse

    module = case.fresh()
    with _timed() as clock:
        fused = fuse(module, inplace=True)
    return _made_torch(case, fused, clock["cpu"])


def module_walk(case: Case, level: str) -> Made:  # noqa: ARG001
    """Run mmcv's `fuse_conv_bn`, the recipe that goes through the modules in the order in which they were registered."""
    from mmcv.cnn import fuse_conv_bn

    module = case.fresh()
    with _timed() as clock:
        fused = fuse_conv_bn(module)
    return _made_torch(case, fused, clock["cpu"])


def timm(case: Case, level: str) -> Made:  # noqa: ARG001
    """Run timm's `reparameterize_model`."""
    from timm.utils.model import reparameterize_model

    if not case.network.factory.startswith("timm:"):
        raise DoesNotApply
    module = case.fresh()
    with _timed() as clock:
        fused = reparameterize_model(module, inplace=True)
    return _made_torch(case, fused, clock["cpu"])


def ultralytics(case: Case, level: str) -> Made:  # noqa: ARG001
    """Run `fuse()` of the network itself."""
    if not case.network.factory.startswith("ultralytics:"):
        raise DoesNotApply
    module: Any = case.fresh()
    with _timed() as clock:
        fused = module.fuse(verbose=False)
    return _made_torch(case, fused, clock["cpu"])


def pt2e(case: Case, level: str) -> Made:  # noqa: ARG001
    """Run the two passes of torchao's quantisation that fold, on an exported program."""
    from torchao.quantization.pt2e.utils import _fuse_conv_bn_, _fuse_linear_bn_

    with torch.no_grad():
        module = torch.export.export(case.fresh(), (case.x,), strict=False).module()
    with _timed() as clock:
        _fuse_conv_bn_(module)
        _fuse_linear_bn_(module)
    return _made_torch(case, module, clock["cpu"])


def dynamo(case: Case, level: str) -> Made:  # noqa: ARG001
    """Export with `torch.onnx.export` as it is by default; the seconds are those of its optimiser."""
    return _made_onnx(case, onnx.load_from_string(case.optimised), case.optimising_s)


def torchscript(case: Case, level: str) -> Made:  # noqa: ARG001
    """Export with torch's older exporter; the seconds are those of the whole export."""
    file = io.BytesIO()
    module = case.fresh()
    with _timed() as clock, contextlib.redirect_stdout(None):
        torch.onnx.export(module, (case.x,), file, dynamo=False, opset_version=18)
    return _made_onnx(case, onnx.load_from_string(file.getvalue()), clock["cpu"])


def onnxoptimizer(case: Case, level: str) -> Made:  # noqa: ARG001
    """Run the pass `fuse_bn_into_conv`."""
    import onnxoptimizer as tool

    model = onnx.load_from_string(case.tidied)
    with _timed() as clock:
        folded = tool.optimize(model, ["fuse_bn_into_conv"])
    return _made_onnx(case, folded, clock["cpu"])


def onnxsim(case: Case, level: str) -> Made:  # noqa: ARG001
    """Run `simplify`."""
    return _simplified(case, case.tidied)


def dynamo_onnxsim(case: Case, level: str) -> Made:  # noqa: ARG001
    """Run onnxsim on what torch exports by default: the pipeline that folds most among the others."""
    return _simplified(case, case.optimised)


def onnxslim(case: Case, level: str) -> Made:  # noqa: ARG001
    """Run `slim`."""
    import onnxslim as tool

    model = onnx.load_from_string(case.tidied)
    with _timed() as clock:
        folded = tool.slim(model)
    return _made_onnx(case, folded, clock["cpu"])


def onnxruntime(case: Case, level: str) -> Made:  # noqa: ARG001
    """Load into ONNX Runtime with all its optimisations; the seconds are those of loading and of a run.

    The last level writes every BatchNorm that is left as a convolution of its own, so those are the ones that the level below leaves.
    """
    model = onnx.load_from_string(case.tidied)
    with _timed() as clock:
        outputs, count = run_onnx(model, case.x, optimisations="ENABLE_ALL")
    _, folded = run_onnx(model, case.x, optimisations="ENABLE_EXTENDED")
    return Made(count.batch_norms, folded.batch_norms - count.batch_norms, largest_error(outputs, case.reference), clock["cpu"])


PEERS: dict[str, Callable[[Case, str], Made]] = {
    function.__name__: function
    for function in (
        *(ours, ours_onnx, fx_fuse, module_walk, timm, ultralytics, pt2e),
        *(dynamo, torchscript, onnxoptimizer, onnxsim, onnxslim, onnxruntime, dynamo_onnxsim),
    )
}


def config_of(level: str) -> FoldConfig:
    """Return the configuration of a level."""
    return FoldConfig() if level == "default" else FoldConfig.model_validate({"level": level})


def kept(graph: Graph | Any) -> dict[str, int]:
    """Return the reasons of what was kept, with how often."""
    return kept_of(graph.refusals)


def kept_of(refusals: tuple[Refusal, ...]) -> dict[str, int]:
    """Return reasons with how often."""
    return dict(collections.Counter(refusal.reason.name for refusal in refusals))


def _simplified(case: Case, given: bytes) -> Made:
    import onnxsim as tool

    model = onnx.load_from_string(given)
    with _timed() as clock:
        folded, _ = tool.simplify(model)
    return _made_onnx(case, folded, clock["cpu"])


def _made_torch(case: Case, module: Any, seconds: float) -> Made:
    count, y = count_in_torch(module, case.x)
    outputs = arrays_of(y)
    if len(outputs) < len(case.reference):  # YOLO's heads hand out fewer intermediate results once they are fused
        return Made(count.batch_norms, as_convolutions(case.count, count), largest_error(outputs[:1], case.reference[:1]), seconds)
    return Made(count.batch_norms, as_convolutions(case.count, count), largest_error(outputs, case.reference), seconds)


def _made_onnx(case: Case, model: onnx.ModelProto, seconds: float) -> Made:
    outputs, count = run_onnx(model, case.x)
    return Made(count.batch_norms, as_convolutions(case.count_in_onnx, count), largest_error(outputs, case.reference), seconds)


@contextlib.contextmanager
def _timed() -> Iterator[dict[str, float]]:
    clock: dict[str, float] = {}
    begin = time.process_time()
    yield clock
    clock["cpu"] = time.process_time() - begin


def _peak_bytes(*, reset: bool = False) -> int:
    """Return the most memory that this process held so far, or since the last reset; with a reset what it holds now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
