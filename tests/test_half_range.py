"""Before a float16 file is written, the float32 network shows whether it fits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent / "graph"))

from networks import folded

from exporter.config import Config, OnnxConfig, ParityConfig, SamplesConfig
from exporter.errors import ExportError
from exporter.half_range import range_check
from exporter.onnx_export import export_onnx

CONFIG = Config(samples=SamplesConfig(random=4, edge=False), parity=ParityConfig(batches=(2,)))


class Overflowing(nn.Module):
    """Two convolutions; between them values of a million."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 2, 1, bias=False)
        with torch.no_grad():
            self.large.weight.fill_(3e5)
            self.small.weight.fill_(1e-4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.small(self.large(x)))


def test_a_network_that_overflows_is_refused_with_the_islands_that_it_needs(tmp_path):
    """The tensor is named with its size; what the message proposes is enough, and the file then says so."""
    graph = folded(Overflowing().eval(), (2, 3, 4, 4))
    config = OnnxConfig(precision="float16")
    with pytest.raises(ExportError, match="beyond float16") as caught:
        export_onnx(graph, tmp_path / "net.onnx", config, key="k", check_range=range_check(CONFIG, None))
    assert caught.value.code == "E461"
    assert "(Conv)" in caught.value.facts["found"]
    assert not list(tmp_path.iterdir())
    islands = json.loads(caught.value.help.partition(" = ")[2])
    assert islands == ["large", "small"]
    config = config.replace(float32=tuple(islands))
    check = range_check(CONFIG.replace(onnx=config), None)
    model = export_onnx(graph, tmp_path / "net.onnx", config, key="k", check_range=check)
    assert set(json.loads(model.metadata["exporter.float32"]).values()) >= {"asked for"}
    assert "float16_largest" in model.provenance.lineage


def test_bfloat16_has_the_range_of_float32(tmp_path):
    """Nothing is measured where nothing can overflow."""
    graph = folded(Overflowing().eval(), (2, 3, 4, 4))
    model = export_onnx(graph, tmp_path / "net.onnx", OnnxConfig(precision="bfloat16", opset=22), key="k", check_range=range_check(CONFIG, None))
    assert "float16_largest" not in model.provenance.lineage
