"""Real networks of the libraries: whatever is folded is exact, whatever is not has its reason, none is wrong.

The networks run at small resolution with random weights and the BatchNorm statistics of a trained network.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.utils._pytree import tree_leaves

from bench.zoo.networks import with_statistics
from exporter.artifacts import Provenance, RefusalReason
from exporter.config import FoldConfig, InputConfig, ModelConfig
from exporter.factories import build_model, example_inputs
from exporter.graph import fold, fold_error_in_float64, fold_onnx, trace

pytestmark = [pytest.mark.peers, pytest.mark.slow]

BOUND = 1e-10
NOT_LINEAR, OTHER = RefusalReason.NOT_LINEAR, RefusalReason.OTHER_CONSUMER
ZOO = [
    # factory, arguments, side of the image, BatchNorms, folded, reasons of the others
    ("timm:resnet18", {}, 64, 20, 20, set()),
    ("timm:mobilenetv3_small_050", {}, 64, 34, 34, set()),
    ("timm:tf_efficientnet_b0", {}, 64, 49, 49, set()),
    ("timm:regnety_002", {}, 64, None, None, set()),
    ("timm:repvgg_a0", {}, 64, 61, 61, set()),
    ("timm:levit_128s", {}, 224, 52, 52, set()),
    ("timm:coatnet_bn_0_rw_224", {}, 224, 35, 25, {NOT_LINEAR, OTHER}),
    ("timm:nf_resnet26", {}, 64, 29, 29, set()),
    ("torchvision:resnet50", {}, 64, 53, 53, set()),
    ("torchvision:densenet121", {}, 64, 121, 59, {OTHER}),
    ("torchvision:googlenet", {"init_weights": False}, 96, 57, 57, set()),
    ("torchvision:vgg11_bn", {}, 224, 8, 8, set()),
    ("torchvision:deeplabv3_mobilenet_v3_large", {}, 64, None, None, set()),
    ("timm:repvit_m0_9", {}, 64, 108, 108, set()),
    ("timm:xcit_tiny_12_p8_224", {}, 224, 15, 3, {RefusalReason.PADDED}),
    ("torchvision:regnet_y_400mf", {}, 64, 53, 53, set()),
    ("ultralytics:yolov8n.yaml", {}, 64, 57, 57, set()),
]


@pytest.mark.parametrize(("factory", "arguments", "side", "num", "num_folded", "reasons"), ZOO, ids=[row[0] for row in ZOO])
def test_network_is_the_same_function_after_the_fold(factory, arguments, side, num, num_folded, reasons, tmp_path):
    """In float64 folded and unfolded agree to 1e-10; the numbers of folds and the reasons are the expected ones."""
    config = ModelConfig(factory=factory, arguments=arguments, inputs=(InputConfig(name="image", shape=(2, 3, side, side)),))
    network = with_statistics(build_model(config, base=tmp_path))
    graph = fold(trace(network, example_inputs(config, None)), FoldConfig(), provenance=Provenance("graph"))
    assert len(graph.folded) == (graph.num_batch_norms if num_folded is None else num_folded)
    assert num is None or graph.num_batch_norms == num
    assert {refusal.reason for refusal in graph.refusals} == reasons
    assert all(refusal.culprits or refusal.detail for refusal in graph.refusals)
    x = torch.rand((3, 3, side, side), generator=torch.Generator().manual_seed(1))
    assert fold_error_in_float64(graph.unfused, (x,), FoldConfig()) <= BOUND


ONNX_ZOO = [(factory, arguments, side) for factory, arguments, side, *_ in ZOO if factory in {
    "timm:resnet18", "timm:mobilenetv3_small_050", "timm:levit_128s", "timm:repvgg_a0", "timm:nf_resnet26", "torchvision:googlenet",
    "timm:repvit_m0_9", "ultralytics:yolov8n.yaml",
}]  # fmt: skip


@pytest.mark.parametrize(("factory", "arguments", "side"), ONNX_ZOO, ids=[row[0] for row in ONNX_ZOO])
def test_the_raw_onnx_export_is_folded_like_the_network(factory, arguments, side):
    """The raw ONNX export of a network has the same BatchNorms folded and refused, by name and reason, and computes the same."""
    config = ModelConfig(factory=factory, arguments=arguments, inputs=(InputConfig(name="image", shape=(2, 3, side, side)),))
    traced = trace(with_statistics(build_model(config, base=Path())), config.inputs)
    graph = fold(traced, FoldConfig(), provenance=Provenance("graph"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter uses what torch deprecates
        made = torch.onnx.export(traced.program, (), None, dynamo=True, optimize=False, verbose=False)
    folded = fold_onnx(made.model_proto, FoldConfig(), base=Path())
    assert sorted(each.batch_norm for each in folded.folded) == sorted(each.batch_norm for each in graph.folded)
    assert {(each.batch_norm, each.reason) for each in folded.refusals} == {(each.batch_norm, each.reason) for each in graph.refusals}
    assert folded.num_batch_norms == graph.num_batch_norms
    x = torch.rand((2, 3, side, side), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = tree_leaves(traced.program.module()(x))
    for reference, candidate in zip(expected, run_onnx(folded.model, x), strict=True):
        assert np.abs(candidate - reference.numpy()).max() <= 1e-3 * float(reference.abs().max())


def run_onnx(model: onnx.ModelProto, x: torch.Tensor) -> list[np.ndarray]:
    """Run a model in ONNX Runtime without its optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})
