"""Real networks of the libraries in 8 bits: valid in their types, judged by what 8 bits cost them, and a wrong scale is seen."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch

from exporter.artifacts import Provenance
from exporter.calibration import calibration_of
from exporter.config import Config, FoldConfig, InputConfig, ModelConfig, OnnxConfig, ParityConfig, SamplesConfig
from exporter.factories import build_model, example_inputs
from exporter.graph import fold, trace
from exporter.onnx_export import export_onnx, open_onnx
from exporter.runners import EightBitTorchRunner, OnnxruntimeRunner, TorchRunner
from exporter.samples import Samples
from exporter.verify import compare, make_feeds, measure_own_error, measure_reference

pytestmark = [pytest.mark.peers, pytest.mark.slow]

SIDE = 64
CASES = [
    # factory, precision, calibration, share of the operators in 8 bits at least
    ("timm:resnet18", "int8", "entropy", 0.2),
    ("timm:mobilenetv3_small_050", "int8", "percentile", 0.4),
    ("timm:convnext_atto", "fp8", "minmax", 0.3),
]


def images(count: int) -> np.ndarray:
    """Return patches of one colour with some noise: neighbouring pixels are alike, as in a picture."""
    rng = np.random.default_rng(0)
    patches = np.kron(rng.standard_normal((count, 3, SIDE // 8, SIDE // 8)), np.ones((1, 1, 8, 8)))
    return (patches + 0.3 * rng.standard_normal(patches.shape)).astype(np.float32)


@pytest.mark.parametrize(("factory", "precision", "calibration", "share"), CASES, ids=[" ".join(case[:3]) for case in CASES])
def test_parity_with_the_own_error_of_8_bits(factory, precision, calibration, share, tmp_path):
    """The file passes by the rule of verdicts; with every scale of a value halved it does not."""
    model = ModelConfig(factory=factory, inputs=(InputConfig(name="image", shape=(2, 3, SIDE, SIDE)),))
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        network = build_model(model, base=tmp_path)
    graph = fold(trace(network, example_inputs(model, None)), FoldConfig(), provenance=Provenance("graph"))
    samples, parity = Samples({"image": images(16)}, None), ParityConfig(batches=(1, 8))
    config = Config(onnx=OnnxConfig(precision=precision, calibration=calibration), samples=SamplesConfig(random=0, edge=False), parity=parity)
    made = export_onnx(graph, tmp_path / "net.onnx", config.onnx, key="k", calibrate=calibration_of(config, samples))
    proto = onnx.load(made.path)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    shares = dict(part.rsplit(" ", 2)[:2] for part in made.metadata["exporter.precision_shares"].split(", "))
    assert int(shares[precision]) >= 100 * share
    assert set(json.loads(made.metadata.get("exporter.float32", "{}")).values()) <= {"computed weight", "zero weight"}

    feeds = make_feeds(samples, graph.inputs, config.samples, parity)
    with TorchRunner("reference", network, graph.inputs, graph.outputs, precision="float64") as runner:
        reference = measure_reference(runner, feeds)
    with EightBitTorchRunner("own", network, graph.inputs, graph.outputs, precision=precision) as runner:
        own = measure_own_error(reference, runner)
    with OnnxruntimeRunner(made) as runner:
        verdict = compare(reference, own, runner, parity)
    print(f"{factory} {precision} {calibration}: {verdict.reason}; {made.metadata['exporter.precision_shares']}")
    assert verdict.outcome.name == "PASS", verdict.reason

    for scale in proto.graph.initializer:
        if scale.name.endswith(f"/{precision}/scale") and ".weight" not in scale.name:
            scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(0.5), scale.name))
    (tmp_path / "broken.onnx").write_bytes(proto.SerializeToString())
    with OnnxruntimeRunner(open_onnx(tmp_path / "broken.onnx")) as runner:
        assert compare(reference, own, runner, parity).outcome.name == "FAIL"
