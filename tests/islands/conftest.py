"""Workspaces over small networks of which it is known what half precision does to them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from exporter.config import BakeConfig, Config, LatencyConfig, ModelConfig, OnnxConfig, ParityConfig, ReportConfig, SamplesConfig
from exporter.workspace import Workspace

NETWORKS = '''
"""Small networks; every size below is that of a value somewhere between two nodes."""

import torch
from torch import nn


class Shift(nn.Module):
    """Far away and back: float32 loses little of x, half precision nearly all of it. Between what it cannot be folded into, it stays."""

    def __init__(self, by, wide=0.0):
        super().__init__()
        self.by, self.wide = by, wide

    def forward(self, x):
        y = (x + self.by) - self.by
        return torch.relu(y + self.wide) if self.wide else y


class Scaled(nn.Module):
    """A convolution whose weights are all of one size."""

    def __init__(self, inputs, outputs, size):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1)
        with torch.no_grad():
            self.conv.weight.copy_(size * (1 + 0.1 * torch.rand(self.conv.weight.shape)))
            self.conv.bias.zero_()

    def forward(self, x):
        return self.conv(x)


def _chain(**parts):
    torch.manual_seed(0)
    network = nn.Sequential()
    for name, part in parts.items():
        network.add_module(name, part() if callable(part) and not isinstance(part, nn.Module) else part)
    return network.eval()


def _conv():
    return nn.Conv2d(4, 4, 3, padding=1)


def plain():
    return _chain(stem=_conv, act=nn.ReLU, body=_conv)


class Soft(nn.Module):
    """Values up to 1, or on and on."""

    def __init__(self, softness):
        super().__init__()
        self.softness = softness

    def forward(self, x):
        return nn.functional.softsign(x) if self.softness == 1.0 else x * 0.5


def overflowing(size=3e5, softness=1.0):
    return _chain(stem=_conv, act=Soft(softness), large=Scaled(4, 4, size), small=Scaled(4, 4, 1 / size), head=_conv)


def shifting(first=3e4, second=3e4, wide=0.0):
    parts = dict(stem=_conv, act=nn.Softsign, first=Shift(first), body=_conv, more=_conv, again=nn.Softsign, second=Shift(second, wide), head=_conv)
    return _chain(**parts)


def hopeless():
    return _chain(stem=_conv, act=nn.Softsign, a=Scaled(4, 4, 1e25), b=Scaled(4, 4, 1e25), c=Scaled(4, 4, 1e-25), d=Scaled(4, 4, 1e-25))
'''
STRICT = ParityConfig(atol=0.02, rtol=0.02, factor=0.001, floor=0.01, batches=(2,))
"""Nothing is granted for what the network itself loses in half precision."""

MakeWorkspace = Callable[..., Workspace]


@pytest.fixture
def workspace(tmp_path: Path) -> MakeWorkspace:
    """Return a workspace over one of ``NETWORKS``, in half precision and with random inputs."""
    code = tmp_path / "networks.py"
    code.write_text(NETWORKS)
    spec = importlib.util.spec_from_file_location("networks_of_islands", code)
    networks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(networks)

    def make(name: str, *, precision: str = "float16", float32: tuple[str, ...] = (), parity: ParityConfig = STRICT, **arguments: float) -> Workspace:
        torch.save(getattr(networks, name)(**arguments).state_dict(), tmp_path / "net.pt")
        config = Config(
            checkpoint=Path("net.pt"),
            model=ModelConfig(factory="networks.py:" + name, arguments=arguments, inputs=({"name": "x", "shape": [2, 4, 5, 5]},)),
            weights=BakeConfig(choice="raw"),
            onnx=OnnxConfig(precision=precision, float32=float32, opset=22),
            samples=SamplesConfig(random=4, seed=1),
            parity=parity,
            latency=LatencyConfig(threads=1),
            report=ReportConfig(directory=Path("work")),
            base=tmp_path,
        )
        return Workspace(config)

    return make
