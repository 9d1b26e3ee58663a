"""Small networks for the tests of the fold, and the way they are traced and folded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exporter.artifacts import Graph, Provenance
from exporter.config import FoldConfig, InputConfig
from exporter.graph import fold, trace
from exporter.graph.precision import fold_error_in_float64

IMAGE = (2, 3, 8, 8)


def folded(
    network: nn.Module, shape: tuple[int, ...] = IMAGE, *, keep: tuple[str, ...] = (), dtype: str = "float32", level: str = "default"
) -> Graph:
    """Trace ``network`` in eval mode on one input of ``shape`` and fold it."""
    traced = trace(network.eval(), (InputConfig(name="x", shape=shape, dtype=dtype),))
    return fold(traced, FoldConfig(keep=keep, level=level), provenance=Provenance("graph"))


def error_in_float64(graph: Graph, shape: tuple[int, ...] = IMAGE, *, keep: tuple[str, ...] = (), level: str = "default") -> float:
    """Return how far the fold is from the unfolded network where both run in float64 on random numbers."""
    x = torch.randn((3, *shape[1:]), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return fold_error_in_float64(graph.unfused, (x,), FoldConfig(keep=keep, level=level))


def trained(norm: nn.Module, *, seed: int = 0, gamma: str = "mixed", var: str = "usual") -> nn.Module:
    """Give a BatchNorm the statistics of a trained one: gamma partly negative and near zero, variances over decades."""
    generator = torch.Generator().manual_seed(seed)
    channels = norm.num_features
    with torch.no_grad():
        if norm.weight is not None:
            norm.weight.copy_(torch.randn(channels, generator=generator))
            if gamma == "zero":
                norm.weight.zero_()
            elif gamma == "negative":
                norm.weight.copy_(-norm.weight.abs() - 0.1)
            else:
                norm.weight[0] = 1e-8
            norm.bias.copy_(torch.randn(channels, generator=generator))
        if norm.running_mean is not None:
            norm.running_mean.copy_(torch.randn(channels, generator=generator))
            norm.running_var.copy_(torch.rand(channels, generator=generator) * (1e-12 if var == "tiny" else 4.0) + (0.0 if var == "tiny" else 0.05))
    return norm


class Sequence(nn.Module):
    """``nn.Sequential`` whose forward takes ``x``."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x
