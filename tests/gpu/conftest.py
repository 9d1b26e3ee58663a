from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from subjects import digits, has_cuda, tensorrt_config

from exporter.engine import probe


@pytest.fixture(scope="session", autouse=True)
def _cuda():
    """Skip everything here on a machine without a GPU, and say why."""
    reason = has_cuda()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def subject(_cuda, tmp_path_factory):
    """The network of the fixtures, folded and exported."""
    return digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def tensorrt(_cuda):
    """Settings of a TensorRT that works here; skip with what is missing."""
    support = probe(tensorrt_config())
    if not support.available:
        pytest.skip(f"{support.missing} (EXPORTER_TENSORRT_PYTHON names another interpreter)")
    return tensorrt_config(workspace_mib=1024)


@pytest.fixture(scope="session")
def judged(subject):
    """Return a function that compares a runner with the float64 reference on the CPU, by the rule of every parity verdict."""
    from exporter.config import ParityConfig
    from exporter.runners import TorchRunner
    from exporter.verify import compare, make_feeds, measure_own_error, measure_reference

    graph = subject.graph
    feeds = make_feeds(subject.samples, graph.inputs, subject.samples_config, ParityConfig())
    with TorchRunner("reference", graph.unfused, graph.inputs, subject.outputs, precision="float64") as runner:
        reference = measure_reference(runner, feeds)
    with TorchRunner("torch-unfused", graph.unfused, graph.inputs, subject.outputs, device="cuda") as runner:
        own_error = measure_own_error(reference, runner)

    def judge(candidate):
        return compare(reference, own_error, candidate, ParityConfig())

    return judge


@pytest.fixture(scope="session")
def model(subject, tensorrt, tmp_path_factory):
    """The ONNX model; for TensorRT 8, which reads opset 17 at most, the same graph converted, or a skip that says why not."""
    if int(probe(tensorrt).tensorrt_version.split(".")[0]) >= 10:
        return subject.onnx
    import onnx
    from onnx import version_converter

    from exporter.onnx_export import open_onnx

    try:
        converted = version_converter.convert_version(onnx.load(subject.onnx.path), 17)
    except (RuntimeError, ValueError) as err:
        pytest.skip(f"TensorRT 8 reads opset 17 at most, and this graph does not convert: {err}")
    path = tmp_path_factory.mktemp("opset17") / "digits.onnx"
    path.write_bytes(converted.SerializeToString())
    return dataclasses.replace(open_onnx(path), provenance=subject.onnx.provenance)
