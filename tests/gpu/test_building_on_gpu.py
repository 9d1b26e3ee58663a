"""What is asked of an engine beyond its network, on a real TensorRT: a release that lacks it refuses by name, which is then what is tested."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from subjects import digits_project

from exporter.config import OnnxConfig, ParityConfig
from exporter.engine import build_engine, make_engine, parse_profiles, probe
from exporter.errors import EngineBuildError, ExportError
from exporter.gates import Gates, candidates_of
from exporter.onnx_export import export_onnx
from exporter.runners import TensorrtRunner
from exporter.trt_worker.serving.features import version_has
from exporter.verify import latency_feed, localise_engine, make_feeds

pytestmark = pytest.mark.gpu
KEY = "0" * 64
FIRST_WITH_FP8 = (8, 9)
"""The compute capability of the first GPUs that have fp8."""


@pytest.fixture(scope="module")
def version(tensorrt):
    """The release that is here."""
    return probe(tensorrt).tensorrt_version


@pytest.fixture
def make_plan(model, tensorrt, tmp_path):
    """Return a function that builds an engine with these settings."""

    def make(**settings):
        profiles = parse_profiles((), model.inputs, batch=8)
        return build_engine(model, tmp_path / "digits.plan", tensorrt.replace(**settings), profiles, key=KEY, cache=tmp_path / "cache")

    return make


@pytest.fixture
def has_or_refuses(version):
    """Return a context in which a release without a feature has to refuse, and the test ends there."""

    @contextlib.contextmanager
    def check(feature: str):
        if version_has(version, feature):
            yield
            return
        with pytest.raises(EngineBuildError) as caught:
            yield
        assert caught.value.code == "E546"
        pytest.skip(f"TensorRT {version} refuses it, as it should")

    return check


def test_a_version_compatible_plan_runs(make_plan, tensorrt, judged, has_or_refuses):
    """The plan carries code for the host, which runs out of it as our own, and passes parity."""
    with has_or_refuses("version compatibility"):
        plan = make_plan(version_compatible=True)
    with TensorrtRunner(plan, tensorrt) as runner:
        verdict = judged(runner)
    assert verdict.outcome.value == "PASS", verdict.reason


def test_streamed_weights_give_the_same_numbers(subject, make_plan, tensorrt, has_or_refuses):
    """The smallest budget, TensorRT's own, and one beyond all weights are taken, and the outputs are the same bits."""
    with has_or_refuses("weight streaming"):
        plan = make_plan(weight_streaming=True)
    feed = latency_feed(subject.samples, plan.inputs, subject.samples_config, batch=8)
    outputs = []
    for budget_mib in (0, None, 1 << 20) if version_has(plan.tensorrt_version, "weight streaming budget") else (None, 1 << 20):
        with TensorrtRunner(plan, tensorrt.replace(weight_streaming_budget_mib=budget_mib)) as runner:
            outputs.append(runner.infer(feed))
    for other in outputs[1:]:
        for name, array in outputs[0].items():
            np.testing.assert_array_equal(array, other[name])


def test_a_second_build_takes_the_tactics_of_the_first(model, tensorrt, has_or_refuses, tmp_path):
    """The tactics of the first build are taken key by key; bytes and numbers are not promised, so they are not compared."""
    settings = tensorrt.replace(reproducible=True, cache_mib=0)
    profiles, support = parse_profiles((), model.inputs, batch=8), probe(tensorrt)
    path, tactics = tmp_path / "digits.plan", []
    for state in ("new", "replayed"):
        with has_or_refuses("editable timing cache"):
            make_engine(model, path, settings, profiles, support, cache=tmp_path / "cache")
        content = json.loads(path.with_name("digits.plan.json").read_text())["content"]
        assert content["timing_cache"] == state
        tactics.append(content["tactics"])
        path.unlink()
    assert tactics[0] == tactics[1]
    assert tactics[0]["count"] > 0


def test_a_library_that_is_registered_already_is_refused(make_plan, tensorrt, has_or_refuses):
    """TensorRT's own library of plugins is one whose plugins are there: it is refused as a second one."""
    import subprocess

    script = "import tensorrt; print(*{line.split()[-1] for line in open('/proc/self/maps') if 'libnvinfer_plugin.so' in line})"
    found = subprocess.run([tensorrt.python or "python", "-c", script], capture_output=True, text=True, check=False).stdout.split()
    if not found:
        pytest.skip("this TensorRT comes without its library of plugins")
    with has_or_refuses("plugin libraries"), pytest.raises(EngineBuildError) as caught:
        make_plan(plugins=[Path(found[0])])
    assert caught.value.code == "E558"


def test_the_inside_of_an_engine_agrees_with_the_file(subject, model, make_plan, tensorrt, has_or_refuses):
    """Tensors between the layers come finite, with names, and those that can be compared with the float64 run of the file do not depart."""
    with has_or_refuses("debug tensors"):
        plan = make_plan(debug_tensors=True)
    feeds = make_feeds(subject.samples, plan.inputs, subject.samples_config, ParityConfig())
    with TensorrtRunner(plan, tensorrt) as runner:
        seen = runner.observe(latency_feed(subject.samples, plan.inputs, subject.samples_config, batch=8))
        if not seen:
            pytest.skip(f"TensorRT {plan.tensorrt_version} fuses this network into one")
        told = localise_engine(runner.observe, plan, model, feeds)
    assert all(np.isfinite(tensor.value).all() for tensor in seen if tensor.value is not None)
    assert told.startswith("no tensor that could be compared departs"), told


def test_islands_of_a_float16_engine_are_held(subject, tensorrt, version, tmp_path):
    """Before TensorRT 10 layers of the float32 nodes of a float16 model are held in float32, and the rest computes in float16."""
    if version_has(version, "strongly typed"):
        pytest.skip("a strongly typed network keeps its islands by itself")
    half = export_onnx(subject.graph, tmp_path / "half.onnx", OnnxConfig(precision="float16", opset=17), key=KEY)
    plan = build_engine(half, tmp_path / "half.plan", tensorrt, parse_profiles((), half.inputs, batch=8), key=KEY)
    held = json.loads(plan.sidecar_path.read_text())["content"]["float32_layers"]
    assert held["layers"] > 0
    assert plan.realised_precision["fp16"] > 0


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_an_engine_in_8_bits_passes_the_gates(tensorrt, version, precision, tmp_path):
    """Calibrated on the samples, built from its pairs: its layers are in 8 bits and float32, and its verdict is PASS with the own error of 8 bits."""
    support = probe(tensorrt)
    if precision == "fp8" and tuple(map(int, support.compute_capability.split("."))) < FIRST_WITH_FP8:
        pytest.skip(f"fp8 needs compute capability 8.9, and {support.gpu} has {support.compute_capability}")
    project = digits_project(tmp_path, precision, tensorrt)
    if precision == "fp8" and not version_has(version, "strongly typed"):
        with pytest.raises(ExportError, match="no fp8"):
            project.build(project.onnx)
        pytest.skip(f"TensorRT {version} refuses fp8, as it should")
    plan = project.build(project.onnx)
    assert plan.precision == precision
    assert plan.provenance.lineage["calibration"].startswith("entropy, ")
    assert plan.realised_precision[precision] > 0
    assert not {"fp16", "bf16", "fp4", "int4", "unknown", {"int8": "fp8", "fp8": "int8"}[precision]} & set(plan.realised_precision)
    (verdict,) = Gates(project).parity(candidates_of(plan, project.config))
    assert verdict.outcome.value == "PASS", verdict.reason
    assert verdict.evidence.precision == precision
    assert verdict.evidence.outputs[0].own_error > 1e-3, "the own error is that of 8 bits"
