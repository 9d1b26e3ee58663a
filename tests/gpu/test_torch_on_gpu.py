"""torch on CUDA: fused against unfused, parity with float64 and the race by events."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.artifacts import Outcome
from exporter.config import LatencyConfig
from exporter.runners import TorchRunner
from exporter.verify import latency_feed, race

pytestmark = pytest.mark.gpu


def runner(subject, name, program, **settings):
    """Return a torch runner on CUDA."""
    return TorchRunner(name, program, subject.graph.inputs, subject.outputs, device="cuda", **settings)


def test_the_fused_network_agrees_with_float64(subject, judged):
    """The folded network on CUDA, in float32 without TF32, passes the parity rule against float64 on the CPU."""
    with runner(subject, "torch-fused", subject.graph.folded_program) as fused:
        verdict = judged(fused)
    assert verdict.outcome is Outcome.PASS, verdict.reason


def test_a_disturbed_network_does_not(subject, judged):
    """One folded weight that is off by 1 % fails on CUDA as it does on the CPU: the check can fail."""
    import copy

    import torch

    module = copy.deepcopy(subject.graph.folded_program.module(check_guards=False))
    with torch.no_grad():
        max(module.parameters(), key=lambda parameter: parameter.dim()).mul_(1.01)
    with runner(subject, "torch-fused", module) as disturbed:
        assert judged(disturbed).outcome is Outcome.FAIL


@pytest.mark.parametrize("cuda_graph", [False, True], ids=["eager", "cuda graph"])
def test_the_race_is_run_by_events(subject, cuda_graph):
    """Fused against unfused is decided from device times; what it comes to is the machine's to say, and it is not INCONCLUSIVE by lack of samples."""
    feed = latency_feed(subject.samples, subject.graph.inputs, subject.samples_config, batch=32)
    with (
        runner(subject, "torch-unfused", subject.graph.unfused, cuda_graph=cuda_graph) as unfused,
        runner(subject, "torch-fused", subject.graph.folded_program, cuda_graph=cuda_graph) as fused,
    ):
        verdict = race(unfused, fused, feed, LatencyConfig(margin=0.10))
    assert verdict.evidence.clock == "cuda events"
    assert len(verdict.evidence.samples_ms) >= 20
    assert verdict.evidence.speedup_low <= verdict.evidence.speedup <= verdict.evidence.speedup_high
    assert verdict.outcome is not Outcome.FAIL, verdict.reason


def test_a_race_against_itself_is_no_difference(subject):
    """The same network twice: the interval holds 1, within a hundredth."""
    feed = latency_feed(subject.samples, subject.graph.inputs, subject.samples_config, batch=32)
    program = subject.graph.folded_program
    with runner(subject, "a", program, cuda_graph=True) as one, runner(subject, "b", program, cuda_graph=True) as other:
        evidence = race(one, other, feed, LatencyConfig(margin=0.10)).evidence
    assert evidence.speedup_low <= 1.01
    assert evidence.speedup_high >= 0.99


def test_times_grow_with_the_work(subject):
    """A batch a thousand times as large takes longer: the events time the work, not the launch alone."""
    feed = latency_feed(subject.samples, subject.graph.inputs, subject.samples_config, batch=8)
    large = {name: np.repeat(array, 4096, axis=0) for name, array in feed.items()}
    with runner(subject, "torch-fused", subject.graph.folded_program, cuda_graph=True) as fused:
        medians = [float(np.median(call.run_block(20))) for call in (fused.prepare(feed), fused.prepare(large)) if call.run_block(5).size]
    assert medians[1] > 2 * medians[0]
