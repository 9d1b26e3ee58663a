"""The ONNX Runtime runner: the provider asked for or none, feeds, outputs by name, timing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from exporter.artifacts import Digest, OnnxModel, Provenance, TensorSpec
from exporter.errors import ConfigError, EnvironmentLacking, MissingLibrary, ModelNotSupported, SampleError
from exporter.runners import OnnxruntimeRunner, Runner
from exporter.runners.execution_providers import nodes_by_provider, require_nodes

TEXT = """
<ir_version: 10, opset_import: ["": 20]>
two_outputs (float[batch, 3] x) => (float[batch, 3] doubled, int64[batch] largest)
<float[1] two = {2.0}>
{
    doubled = Mul(x, two)
    largest = ArgMax<axis = 1, keepdims = 0>(x)
}
"""
INPUTS = (TensorSpec("x", ("batch", 3), "float32"),)
OUTPUTS = (TensorSpec("doubled", ("batch", 3), "float32"), TensorSpec("largest", ("batch",), "int64"))
FEED = {"x": np.array([[1.0, 5.0, 2.0], [9.0, 0.0, -1.0]], np.float32)}


@pytest.fixture
def model(tmp_path: Path) -> OnnxModel:
    """Two outputs of different dtypes."""
    path = tmp_path / "two.onnx"
    path.write_bytes(onnx.parser.parse_model(TEXT).SerializeToString())
    return OnnxModel(path, Digest("0" * 64), 20, 10, INPUTS, OUTPUTS, 2, 0, {}, Provenance("onnx"))


def test_outputs_come_by_name_in_their_own_dtype(model):
    """Each output is found under its name."""
    with OnnxruntimeRunner(model) as runner:
        assert isinstance(runner, Runner)
        outputs = runner.infer(FEED)
        again = runner.infer({"x": -FEED["x"][:1]})
    np.testing.assert_array_equal(outputs["doubled"], 2 * FEED["x"])
    np.testing.assert_array_equal(outputs["largest"], np.array([1, 0]))
    assert outputs["largest"].dtype == np.int64
    np.testing.assert_array_equal(again["doubled"], -2 * FEED["x"][:1])
    assert runner.load_ms > 0


def test_declared_order_of_outputs_does_not_matter(model):
    """Outputs listed in another order than the file has them keep their names."""
    import dataclasses

    with OnnxruntimeRunner(dataclasses.replace(model, outputs=OUTPUTS[::-1])) as runner:
        outputs = runner.infer(FEED)
    np.testing.assert_array_equal(outputs["doubled"], 2 * FEED["x"])
    np.testing.assert_array_equal(outputs["largest"], np.array([1, 0]))


@pytest.mark.parametrize(
    ("feed", "code"),
    [
        pytest.param({"y": FEED["x"]}, "E611", id="name"),
        pytest.param({"x": FEED["x"][:, :2]}, "E612", id="shape"),
        pytest.param({"x": FEED["x"].astype(np.float16)}, "E613", id="dtype"),
    ],
)
def test_feed_that_does_not_fit_is_refused(model, feed, code):
    """The same errors as every other runner."""
    with OnnxruntimeRunner(model) as runner, pytest.raises(SampleError) as caught:
        runner.infer(feed)
    assert caught.value.code == code


def test_provider_that_is_not_in_the_build_is_an_error(model):
    """Nothing falls back to the CPU provider."""
    with pytest.raises(MissingLibrary, match="no other one was used") as caught, OnnxruntimeRunner(model, provider="RknpuExecutionProvider"):
        pass
    assert (caught.value.code, caught.value.exit_status) == ("E841", 6)


@pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(), reason="this ONNX Runtime has no CUDA provider")
@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU: the provider starts")
def test_provider_that_does_not_start_is_an_error(model):
    """The CUDA provider is in the build, there is no GPU: ONNX Runtime would go on silently on the CPU, the runner does not."""
    with pytest.raises(EnvironmentLacking, match="did not start") as caught, OnnxruntimeRunner(model, provider="CUDAExecutionProvider"):
        pass
    assert (caught.value.code, caught.value.exit_status) == ("E842", 6)


def test_file_that_is_no_model_is_refused(model):
    """ONNX Runtime's complaint comes as one of our errors."""
    model.path.write_bytes(b"no model")
    with pytest.raises(ModelNotSupported) as caught, OnnxruntimeRunner(model):
        pass
    assert caught.value.code == "E623"


def test_block_times_every_call_and_leaves_the_outputs_right(model):
    """The first call of a prepared call makes the buffers, the others reuse them."""
    with OnnxruntimeRunner(model) as runner:
        call = runner.prepare(FEED)
        times = np.concatenate([call.run_block(1), call.run_block(6)])
        np.testing.assert_array_equal(runner.infer(FEED)["doubled"], 2 * FEED["x"])
    assert call.clock == "perf_counter"
    assert times.shape == (7,)
    assert (times > 0).all()


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider"])
@pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(), reason="this ONNX Runtime has no CUDA provider")
@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU: the provider starts")
def test_nothing_is_printed_where_a_provider_does_not_start(model, provider, capfd):
    """ONNX Runtime prints on standard output that it falls back; nothing may come between two lines of JSON."""
    with pytest.raises(EnvironmentLacking) as caught, OnnxruntimeRunner(model, provider=provider):
        pass
    assert caught.value.code == "E842"
    assert caught.value.facts["found"]
    assert capfd.readouterr().out == ""


def test_provider_of_no_such_name_is_a_mistake(model):
    """A misspelt name is a mistake of the configuration, with what was meant."""
    with pytest.raises(ConfigError, match="no provider of this name") as caught, OnnxruntimeRunner(model, provider="CUDAProvider"):
        pass
    assert caught.value.code == "E551"
    assert caught.value.help.startswith("did you mean CUDAExecutionProvider")


def test_nodes_are_counted_by_provider(model):
    """A session tells which provider took how many nodes; where none is on the provider that was asked for, there is no result."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    nodes = nodes_by_provider(ort.InferenceSession(model.path, options, providers=["CPUExecutionProvider"]))
    if not nodes:
        pytest.skip("this ONNX Runtime does not tell")
    assert nodes == {"CPUExecutionProvider": 2}
    require_nodes("CPUExecutionProvider", nodes, {})
    with pytest.raises(EnvironmentLacking, match="no node of the model") as caught:
        require_nodes("CUDAExecutionProvider", nodes, {})
    assert (caught.value.code, caught.value.facts["found"]) == ("E550", "2 nodes on CPUExecutionProvider")
