"""A real engine: built, inspected, compared with float64, timed. ``EXPORTER_TENSORRT_PYTHON`` names an interpreter that has TensorRT."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from exporter.artifacts import Outcome
from exporter.config import LatencyConfig
from exporter.engine import build_engine, load_plan, parse_profiles, plan_key, probe
from exporter.errors import EngineBuildError, ExporterError, SampleError
from exporter.runners import TensorrtRunner, TorchRunner
from exporter.verify import latency_feed, race

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def plan(model, tensorrt, tmp_path_factory):
    """An engine of the fixture, for batches of 1 to 64."""
    profiles = parse_profiles((), model.inputs, batch=64)
    path = tmp_path_factory.mktemp("engine") / "digits.plan"
    return build_engine(model, path, tensorrt, profiles, key=plan_key(model.digest, tensorrt, profiles, probe(tensorrt)))


def test_the_engine_has_the_precision_that_was_asked_for(plan):
    """The inspector's layers are float32, and the sidecar says so."""
    assert plan.realised_precision
    assert not {"fp16", "bf16", "int8", "fp8", "unknown"} & set(plan.realised_precision)
    assert load_plan(plan.path) == plan


def test_the_engine_agrees_with_float64(plan, tensorrt, judged):
    """The engine, TF32 off, passes the parity rule against float64 on the CPU."""
    with TensorrtRunner(plan, tensorrt) as runner:
        verdict = judged(runner)
    assert verdict.outcome is Outcome.PASS, verdict.reason


def test_two_runs_give_the_same_bits(subject, plan, tensorrt):
    """The same input twice, with another one between, gives the same output: no call sees what the one before left."""
    feed, other = (latency_feed(subject.samples, plan.inputs, subject.samples_config, batch=batch) for batch in (32, 5))
    with TensorrtRunner(plan, tensorrt) as runner:
        first = runner.infer(feed)
        runner.infer(other)
        second = runner.infer(feed)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
        assert np.isfinite(array).all()


def test_a_batch_outside_the_profile_is_refused(subject, plan, tensorrt):
    """A batch of 65 fits no profile, and the message says what would."""
    feed = latency_feed(subject.samples, plan.inputs, subject.samples_config, batch=65)
    with TensorrtRunner(plan, tensorrt) as runner, pytest.raises(SampleError, match="fit no optimization profile"):
        runner.infer(feed)


def test_the_race_is_run_by_events(subject, plan, tensorrt):
    """The engine races against unfused torch, captured in a CUDA graph so that launches do not decide it."""
    feed = latency_feed(subject.samples, plan.inputs, subject.samples_config, batch=32)
    with (
        TorchRunner("torch-unfused", subject.graph.unfused, subject.graph.inputs, subject.outputs, device="cuda", cuda_graph=True) as unfused,
        TensorrtRunner(plan, tensorrt) as engine,
    ):
        verdict = race(unfused, engine, feed, LatencyConfig(margin=10.0))
    assert verdict.evidence.clock == "cuda events"
    assert verdict.evidence.speedup > 0


def test_a_cancelled_build_leaves_nothing(model, tensorrt, tmp_path):
    """Cancelling at the first step ends the build, through the progress monitor or by ending the worker, and writes no file."""
    profiles = parse_profiles((), model.inputs, batch=64)
    with pytest.raises(EngineBuildError, match="cancelled"):
        build_engine(model, tmp_path / "out" / "a.plan", tensorrt, profiles, key="0" * 64, progress=lambda *_: False)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_onnx_is_refused(model, tensorrt, tmp_path):
    """The parser's own words are in the error, and nothing is written."""
    import hashlib

    from exporter.artifacts import Digest

    path = tmp_path / "broken.onnx"
    path.write_bytes(model.path.read_bytes()[:200])
    broken = dataclasses.replace(model, path=path, digest=Digest(hashlib.sha256(path.read_bytes()).hexdigest()))
    with pytest.raises(ExporterError) as caught:
        build_engine(broken, tmp_path / "a.plan", tensorrt, parse_profiles((), model.inputs, batch=1), key="0" * 64)
    assert caught.value.code == "E501"
    assert not (tmp_path / "a.plan").exists()


OVERFLOWING = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Softsign(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1))
    with torch.no_grad():
        network[2].weight.fill_(5e4)
        network[3].weight.fill_(2e-5)
    return network.eval()
"""


def test_the_islands_of_an_engine_are_found(tensorrt, tmp_path):
    """Engines are built until one passes; the convolutions with values beyond float16 between them are among its islands."""
    import torch

    from exporter.config import BakeConfig, Config, ModelConfig, OnnxConfig, ReportConfig
    from exporter.factories import build_model
    from exporter.islands import find_islands
    from exporter.workspace import Workspace

    (tmp_path / "network.py").write_text(OVERFLOWING)
    model = ModelConfig(factory="network.py:build", inputs=({"name": "image", "shape": [2, 3, 16, 16]},))
    torch.save(build_model(model, base=tmp_path).state_dict(), tmp_path / "net.pt")
    config = Config(
        checkpoint=Path("net.pt"),
        model=model,
        weights=BakeConfig(choice="raw"),
        onnx=OnnxConfig(precision="float16"),
        tensorrt=tensorrt.replace(cache=tmp_path / "cache"),
        report=ReportConfig(directory=Path("work")),
        base=tmp_path,
    )
    found = find_islands(Workspace(config), engine=True, builds=30)
    assert found.outcome is Outcome.PASS, found
    assert {island.module for island in found.islands} >= {"2", "3"}
