"""What the runner of engines does on a real GPU: CUDA graphs, outputs whose shape depends on the data, tensors on the host, calls run twice."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exporter.artifacts import Outcome
from exporter.config import LatencyConfig
from exporter.engine import build_engine, parse_profiles, plan_key, probe
from exporter.onnx_export import open_onnx
from exporter.runners import TensorrtRunner, TorchRunner
from exporter.verify import latency_feed, race

pytestmark = pytest.mark.gpu

DEPENDS_ON_THE_DATA = """
<ir_version: 8, opset_import: ["": 17]>
positive (float[batch, 8] x) => (float[batch, 8] doubled, int64[2, count] places, int64[2] shape)
<float zero = {0.0}, float[1] two = {2.0}>
{
    doubled = Mul(x, two)
    is_positive = Greater(x, zero)
    places = NonZero(is_positive)
    shape = Shape(x)
}
"""


@pytest.fixture(scope="module")
def build(tensorrt, tmp_path_factory):
    """Return a function that builds an engine."""

    def make(model, batch=64):
        profiles = parse_profiles((), model.inputs, batch=batch)
        path = tmp_path_factory.mktemp("engine") / "a.plan"
        return build_engine(model, path, tensorrt, profiles, key=plan_key(model.digest, tensorrt, profiles, probe(tensorrt)))

    return make


@pytest.fixture(scope="module")
def plan(subject, build, tensorrt):
    """An engine of the fixture; TensorRT 8 reads opset 17 at most, and its graphs are shown by ``finding``."""
    if int(probe(tensorrt).tensorrt_version.split(".")[0]) < 10:
        pytest.skip("TensorRT 8 reads opset 17 at most")
    return build(subject.onnx)


@pytest.fixture(scope="module")
def finding(build, tmp_path_factory):
    """An engine that returns where its input is positive, and the input's shape."""
    path = tmp_path_factory.mktemp("model") / "positive.onnx"
    onnx.save(onnx.parser.parse_model(DEPENDS_ON_THE_DATA), path)
    return build(open_onnx(path), batch=16)


@pytest.fixture
def feed(subject):
    """Return a function that gives a batch of samples."""
    return lambda batch: latency_feed(subject.samples, subject.graph.inputs, subject.samples_config, batch=batch)


def test_a_timed_call_is_captured(plan, tensorrt, feed):
    """The call is replayed from a graph, and again after a call with other shapes; its time is a time."""
    with TensorrtRunner(plan, tensorrt) as runner:
        call = runner.prepare(feed(32))
        assert call.launch == "cuda graph"
        first = float(np.median(call.run_block(50)))
        runner.infer(feed(5))
        second = float(np.median(call.run_block(50)))
        assert call.launch == "cuda graph"
    assert 0.2 < first / second < 5


def test_replays_give_what_plain_calls_give(plan, tensorrt, feed):
    """Inference through a graph has the bits of inference without one, at several batch sizes."""
    with TensorrtRunner(plan, tensorrt) as plain, TensorrtRunner(plan, tensorrt.replace(cuda_graph="always")) as replayed:
        for batch in (1, 32, 7):
            expected, found = plain.infer(feed(batch)), replayed.infer(feed(batch))
            for name, array in expected.items():
                np.testing.assert_array_equal(found[name], array)


def test_replays_pass_parity_with_the_same_bits_each_time(plan, tensorrt, judged):
    """The replayed engine passes the parity rule, and no call differs from its repetition."""
    with TensorrtRunner(plan, tensorrt.replace(cuda_graph="always")) as runner:
        verdict = judged(runner)
    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert verdict.evidence.repeats.endswith("the same bits")


def test_two_engines_race(plan, tensorrt, feed):
    """The same engine in two workers at once: the interval of the race holds 1, within a tenth."""
    with TensorrtRunner(plan, tensorrt, name="one") as one, TensorrtRunner(plan, tensorrt, name="other") as other:
        evidence = race(one, other, feed(32), LatencyConfig(margin=0.2)).evidence
    assert (evidence.launch, evidence.reference_launch) == ("cuda graph", "cuda graph")
    assert evidence.speedup_low <= 1.1
    assert evidence.speedup_high >= 0.9


def test_the_race_is_run_like_with_like(subject, plan, tensorrt, feed):
    """Unfused torch and the engine are both in a CUDA graph."""
    settings = {"device": "cuda", "cuda_graph": True}
    with (
        TorchRunner("torch-unfused", subject.graph.unfused, subject.graph.inputs, subject.outputs, **settings) as unfused,
        TensorrtRunner(plan, tensorrt) as engine,
    ):
        evidence = race(unfused, engine, feed(32), LatencyConfig(margin=10.0)).evidence
    assert (evidence.launch, evidence.reference_launch) == ("cuda graph", "cuda graph")


def test_an_output_that_depends_on_the_data_has_its_true_shape(finding, tensorrt):
    """Places of positive values, none or all of them, in any order of calls; the shape that the network returns is right as well."""
    rng = np.random.default_rng(0)
    with TensorrtRunner(finding, tensorrt) as runner:
        for batch, shift in ((4, 0.0), (16, 5.0), (4, -5.0), (1, 0.0), (16, 0.0)):
            x = rng.uniform(-1, 1, (batch, 8)).astype(np.float32) + np.float32(shift)
            outputs = runner.infer({"x": x})
            np.testing.assert_array_equal(outputs["places"], np.array(np.nonzero(x > 0)))
            np.testing.assert_array_equal(outputs["doubled"], 2 * x)
            assert outputs["shape"].tolist() == [batch, 8]
        assert runner.repetition.num_calls == 5
        assert not runner.repetition.differing


def test_such_an_engine_is_timed_by_plain_calls(finding, tensorrt):
    """There is no graph where the shape of an output depends on the data, and the call says so."""
    with TensorrtRunner(finding, tensorrt) as runner:
        call = runner.prepare({"x": np.ones((4, 8), np.float32)})
        assert call.launch == "enqueue (the shape of places depends on the data)"
        assert (call.run_block(20) > 0).all()


def test_a_network_that_torch_cannot_capture_is_launched_eagerly(subject):
    """torch refuses to capture what waits for the device; the call says so and times launches."""
    import torch

    class Waiting(torch.nn.Module):
        def forward(self, image):
            return {"logits": image.flatten(1)[:, :10] * float(image.sum().item() > 0)}

    with TorchRunner("waiting", Waiting(), subject.graph.inputs, ("logits",), device="cuda", cuda_graph=True) as runner:
        call = runner.prepare({"image": np.ones((4, 1, 8, 8), np.float32)})
        assert call.launch.startswith("eager (no CUDA graph: ")
        assert (call.run_block(5) > 0).all()
    with TorchRunner("torch-fused", subject.graph.folded_program, subject.graph.inputs, subject.outputs, device="cuda", cuda_graph=True) as runner:
        assert runner.prepare({"image": np.ones((4, 1, 8, 8), np.float32)}).launch == "cuda graph"
