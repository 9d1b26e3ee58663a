"""Real networks of the libraries in half precision: valid in their types, float32 outside, and as good as the network's own half."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from exporter.artifacts import Provenance
from exporter.config import FoldConfig, InputConfig, ModelConfig, OnnxConfig, ParityConfig, SamplesConfig
from exporter.factories import build_model, example_inputs
from exporter.graph import fold, trace
from exporter.onnx_export import export_onnx
from exporter.runners import RoundedOnnxRunner, TorchRunner
from exporter.verify import compare, make_feeds, measure_own_error, measure_reference

pytestmark = [pytest.mark.peers, pytest.mark.slow]

NETWORKS = [
    # factory, side of the image
    ("timm:resnet18", 64),
    ("timm:mobilenetv3_small_050", 64),
    ("timm:convnext_atto", 64),
    ("timm:vit_tiny_patch16_224", 224),
    ("timm:regnety_002", 64),
]


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize(("factory", "side"), NETWORKS, ids=[row[0] for row in NETWORKS])
def test_parity_with_the_own_error_of_half_precision(factory, side, precision, tmp_path):
    """By the rule of verdicts, measured with the unfused network in torch in the same precision, the file passes."""
    model = ModelConfig(factory=factory, inputs=(InputConfig(name="image", shape=(2, 3, side, side)),))
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        network = build_model(model, base=tmp_path)
    graph = fold(trace(network, example_inputs(model, None)), FoldConfig(), provenance=Provenance("graph"))
    half = export_onnx(graph, tmp_path / "half.onnx", OnnxConfig(opset=22, precision=precision), key="k")
    onnx.shape_inference.infer_shapes(onnx.load(half.path), check_type=True, strict_mode=True, data_prop=True)
    assert {spec.dtype for spec in (*half.inputs, *half.outputs)} == {"float32"}
    parity = ParityConfig(batches=(2,))
    feeds = make_feeds(None, graph.inputs, SamplesConfig(random=2, edge=False), parity)
    with TorchRunner("reference", network, graph.inputs, graph.outputs, precision="float64") as runner:
        reference = measure_reference(runner, feeds)
    with TorchRunner("own", network, graph.inputs, graph.outputs, precision=precision) as runner:
        own = measure_own_error(reference, runner)
    with RoundedOnnxRunner(half) as runner:
        verdict = compare(reference, own, runner, parity)
    print(f"{factory} {precision}: {verdict.reason}; {half.metadata['exporter.precision_shares']}")
    assert verdict.outcome.name == "PASS", verdict.reason
    assert np.isfinite(verdict.evidence.outputs[0].relative_l2)
