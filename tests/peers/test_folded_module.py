"""``exporter.fold`` on networks of the libraries, with their own ways of writing a BatchNorm."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import exporter
from tests.peers.test_fold_zoo import with_statistics

pytestmark = [pytest.mark.peers, pytest.mark.slow]


def mobilenet() -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    return timm.create_model("mobilenetv3_small_050", pretrained=False)


def yolo() -> nn.Module:
    tasks = pytest.importorskip("ultralytics.nn.tasks", reason="ultralytics is not installed")
    return tasks.DetectionModel("yolov8n.yaml", verbose=False)


def frozen() -> nn.Module:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    from torchvision.ops import FrozenBatchNorm2d

    network = models.resnet18(norm_layer=FrozenBatchNorm2d)
    generator = torch.Generator().manual_seed(0)
    for norm in network.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            for buffer, low in (("weight", 0.6), ("bias", -0.1), ("running_mean", -0.1), ("running_var", 0.5)):
                getattr(norm, buffer).uniform_(low, low + 0.8, generator=generator)
    return network


class Conditional(nn.Module):
    """A branch that torch can record, between a part that is folded and a BatchNorm in one of its branches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.inner = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return torch.cond(y.mean() > 0, self.inner, torch.clone, (y,))


@pytest.mark.parametrize(
    ("make", "num_folded", "num_kept"),
    [(mobilenet, 34, 0), (yolo, 57, 0), (frozen, 20, 0), (Conditional, 1, 1)],
    ids=["timm's BatchNormAct2d", "ultralytics", "torchvision's FrozenBatchNorm2d", "torch.cond"],
)
def test_network_is_the_same_function_after_fold(make: Callable[[], nn.Module], num_folded, num_kept):
    """Every BatchNorm is folded, whatever class it is of, except in a branch; outputs agree up to float32."""
    network = with_statistics(make()).eval()
    folded = exporter.fold(network, torch.zeros(2, 3, 64, 64))
    assert (len(folded.folded), len(folded.refusals)) == (num_folded, num_kept)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        leaves = zip(torch.utils._pytree.tree_leaves(folded(x)), torch.utils._pytree.tree_leaves(network(x)), strict=True)
        for got, expected in leaves:
            assert torch.linalg.norm(got - expected) <= 1e-4 * torch.linalg.norm(expected)
