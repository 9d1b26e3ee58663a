"""Real networks of the libraries: whatever is folded is exact, whatever is not has its reason, none is wrong.

The networks run at small resolution with random weights and the BatchNorm statistics of a trained network.
"""

from __future__ import annotations

import pytest
import torch

from bench.zoo.networks import with_statistics
from exporter.artifacts import Provenance, RefusalReason
from exporter.config import FoldConfig, InputConfig, ModelConfig
from exporter.factories import build_model, example_inputs
from exporter.graph import fold, fold_error_in_float64, trace

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
