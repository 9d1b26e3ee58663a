"""Plans of real networks, applied to other weights of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import exporter
from exporter.config import ModelConfig
from exporter.factories import build_model
from tests.peers.test_fold_zoo import with_statistics

pytestmark = [pytest.mark.peers, pytest.mark.slow]


@pytest.mark.parametrize(
    ("factory", "side"),
    [
        ("timm:resnet18", 64),
        ("timm:repvgg_a0", 64),
        ("timm:mobilenetv3_small_050", 64),
        ("timm:levit_128s", 224),
        ("torchvision:densenet121", 64),
        ("torchvision:googlenet", 96),
        ("ultralytics:yolov8n.yaml", 64),
    ],
)
def test_other_weights_are_folded_bit_for_bit(factory, side, tmp_path):
    """Applying the plan of one network to the weights of another of its kind gives the bits of folding that one anew."""
    arguments = {"init_weights": False} if factory.endswith("googlenet") else {}
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(with_statistics(build_model(ModelConfig(factory=factory, arguments=arguments), base=tmp_path)))
    sample = torch.zeros(2, 3, side, side)
    plan = exporter.fold(networks[0], sample).plan
    got = exporter.apply_plan(plan, {name: tensor.detach().numpy() for name, tensor in networks[1].state_dict().items()})
    expected = {name: tensor.detach().numpy() for name, tensor in exporter.fold(networks[1], sample).state_dict().items()}
    assert sorted(got) == sorted(expected)
    assert [name for name in expected if not np.array_equal(got[name], expected[name], equal_nan=True)] == []
