"""Real networks of the libraries, exported at opset 18 and newer and lowered to opset 17: the same outputs in ONNX Runtime."""

from __future__ import annotations

import pytest
import torch

from exporter.artifacts import Provenance
from exporter.config import Config, FoldConfig, InputConfig, ModelConfig, OnnxConfig, ParityConfig, SamplesConfig
from exporter.factories import build_model, example_inputs
from exporter.graph import fold, trace
from exporter.older_opset import check_with
from exporter.onnx_export import export_onnx, lower_onnx

pytestmark = [pytest.mark.peers, pytest.mark.slow]

NETWORKS = [
    # factory, side of the image, the newer opset
    ("timm:resnet50", 64, 20),
    ("timm:mobilenetv3_large_100", 64, 18),
    ("timm:vit_tiny_patch16_224", 224, 23),
    ("timm:swin_tiny_patch4_window7_224", 224, 23),
    ("timm:convnext_atto", 64, 20),
    ("torchvision:deeplabv3_mobilenet_v3_large", 64, 23),
    ("torchvision:densenet121", 64, 18),
    ("ultralytics:yolov8n.yaml", 64, 20),
]


@pytest.mark.parametrize(("factory", "side", "opset"), NETWORKS, ids=[row[0] for row in NETWORKS])
def test_the_lowered_network_computes_the_same(factory, side, opset, tmp_path):
    """Every output agrees to 1e-5 in relative L2; the lineage says how far it is, and 0 means bit for bit."""
    model = ModelConfig(factory=factory, inputs=(InputConfig(name="image", shape=(2, 3, side, side)),))
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        network = build_model(model, base=tmp_path)
    graph = fold(trace(network, example_inputs(model, None)), FoldConfig(), provenance=Provenance("graph"))
    newer = export_onnx(graph, tmp_path / "newer.onnx", OnnxConfig(opset=opset), key="k")
    config = Config(samples=SamplesConfig(random=2, edge=False), parity=ParityConfig(batches=(2,)))
    older = lower_onnx(newer, tmp_path / "older.onnx", key="k", check=check_with(config, None))
    assert (older.opset, older.ir_version, older.inputs, older.outputs) == (17, 8, newer.inputs, newer.outputs)
    departure = float(older.provenance.lineage[f"departure_from_opset_{opset}"])
    print(f"{factory} opset {opset}: {departure:.1e}, {newer.num_nodes} -> {older.num_nodes} nodes")
    assert departure <= 1e-5
