"""Half precision on the CPU shows what half precision does, where ONNX Runtime's own float16 does not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import onnxruntime
import pytest

from exporter.artifacts import Digest, OnnxModel, Provenance, TensorSpec
from exporter.onnx_export.precision import halve_
from exporter.runners import RoundedOnnxRunner, Runner

UP_AND_DOWN = """
<ir_version: 10, opset_import: ["": 22]> g (float[batch,3] x) => (float[batch,3] y) <float thousand = {1000.0}, float thousandth = {0.001}>
{ a = Mul(x, thousand) b = Mul(a, thousand) c = Mul(b, thousandth) y = Mul(c, thousandth) }
"""


def model_at(path, precision: str) -> OnnxModel:
    """Write the network in half precision and describe it."""
    model = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(UP_AND_DOWN)))
    halve_(model, precision)
    path.write_bytes(onnx_ir.to_proto(model).SerializeToString())
    specs = tuple(TensorSpec(name, ("batch", 3), "float32") for name in "xy")
    return OnnxModel(path, Digest("0" * 64), 22, 10, specs[:1], specs[1:], 6, 0, {"exporter.precision": precision}, Provenance("onnx"), precision)


def test_an_overflow_between_two_nodes_is_seen(tmp_path):
    """Ten million is infinite in float16; ONNX Runtime alone carries it through, here the output is infinite."""
    model = model_at(tmp_path / "net.onnx", "float16")
    x = np.full((2, 3), 10.0, np.float32)
    alone = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    assert np.isfinite(alone).all()
    with RoundedOnnxRunner(model) as runner:
        assert isinstance(runner, Runner)
        assert np.isinf(runner.infer({"x": x})["y"]).all()
        assert runner.settings["arithmetic"] == "float32, each value rounded to float16"


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_values_are_rounded_after_every_node(tmp_path, precision):
    """The outputs are bit for bit those of NumPy rounding after each step, bfloat16 too, for which there are no kernels."""
    import ml_dtypes

    kind = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[precision]
    model = model_at(tmp_path / "net.onnx", precision)
    x = np.random.default_rng(0).uniform(0.001, 0.01, (4, 3)).astype(np.float32)
    want = x.astype(kind)
    for factor in (1000.0, 1000.0, 0.001, 0.001):
        want = (want.astype(np.float32) * np.float32(kind(factor))).astype(kind)
    with RoundedOnnxRunner(model) as runner:
        np.testing.assert_array_equal(runner.infer({"x": x})["y"], want.astype(np.float32))
    assert not list(tmp_path.glob("rounded*"))
