"""ONNX Runtime's CUDA provider."""

from __future__ import annotations

import pytest

from exporter.artifacts import Outcome
from exporter.config import LatencyConfig
from exporter.errors import EnvironmentLacking
from exporter.runners import OnnxruntimeRunner, TorchRunner
from exporter.verify import latency_feed, race

pytestmark = pytest.mark.gpu


@pytest.fixture
def cuda_provider(subject):
    """A session on CUDA; skip with the reason where this build of ONNX Runtime has none."""
    runner = OnnxruntimeRunner(subject.onnx, name="onnx-cuda", provider="CUDAExecutionProvider")
    try:
        runner.__enter__()
    except EnvironmentLacking as err:
        pytest.skip(f"{err.problem}: {err.facts.get('found', '')}")
    yield runner
    runner.__exit__(None, None, None)


def test_the_onnx_model_agrees_with_float64(cuda_provider, judged):
    """The ONNX model in ONNX Runtime on CUDA passes the parity rule."""
    verdict = judged(cuda_provider)
    assert verdict.outcome is Outcome.PASS, verdict.reason


def test_the_race_is_run(subject, cuda_provider):
    """ONNX Runtime races against unfused torch on the same device."""
    feed = latency_feed(subject.samples, subject.graph.inputs, subject.samples_config, batch=32)
    with TorchRunner("torch-unfused", subject.graph.unfused, subject.graph.inputs, subject.outputs, device="cuda") as unfused:
        verdict = race(unfused, cuda_provider, feed, LatencyConfig(margin=10.0))
    assert verdict.evidence.speedup > 0


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider"])
def test_nodes_run_where_they_were_asked_to(subject, judged, provider):
    """The provider took nodes of the model, as the settings say, and agrees with float64; or the machine lacks it, with the reason."""
    runner = OnnxruntimeRunner(subject.onnx, name="onnx-gpu", provider=provider)
    try:
        runner.__enter__()
    except EnvironmentLacking as err:
        pytest.skip(f"{err.problem}: {err.facts['found']}")
    try:
        assert provider in runner.settings["nodes"] or "not told" in runner.settings["nodes"]
        verdict = judged(runner)
    finally:
        runner.__exit__(None, None, None)
    if provider == "CUDAExecutionProvider":  # whether TensorRT's provider uses TF32 is its own to decide
        assert verdict.outcome is Outcome.PASS, verdict.reason
