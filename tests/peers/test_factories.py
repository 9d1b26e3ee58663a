"""Factories of the libraries: built by name, never downloaded, misspelt names with near misses."""

from __future__ import annotations

import pytest
from torch import nn

from exporter.config import ModelConfig
from exporter.errors import ConfigError, ExporterError, ExportError
from exporter.factories import build_model, model_identity

pytestmark = pytest.mark.peers


@pytest.mark.parametrize(
    ("factory", "arguments", "library"),
    [
        ("timm:resnet18", {"num_classes": 7}, "timm"),
        ("torchvision:resnet18", {"num_classes": 7}, "torchvision"),
        ("torchvision:deeplabv3_mobilenet_v3_large", {"num_classes": 7}, "torchvision"),
        ("ultralytics:yolov8n.yaml", {"nc": 7}, "ultralytics"),
        ("ultralytics:yolov8n-seg.yaml", {"nc": 7}, "ultralytics"),
        ("ultralytics:yolov8n-cls.yaml", {"nc": 7}, "ultralytics"),
    ],
)
def test_model_of_a_library(factory, arguments, library, tmp_path, capsys):
    """The network is there in eval mode, takes the arguments, prints nothing on stdout, and is known by the library's version."""
    config = ModelConfig(factory=factory, arguments=arguments)
    network = build_model(config, base=tmp_path)
    assert isinstance(network, nn.Module)
    assert not network.training
    assert any(7 in tensor.shape for tensor in network.state_dict().values())
    assert capsys.readouterr().out == ""
    assert "not installed" not in model_identity(config, base=tmp_path)


@pytest.mark.parametrize(
    ("factory", "kind", "near"),
    [
        ("timm:resnet81", ConfigError, "resnet18"),
        ("torchvision:resnet81", ConfigError, "resnet18"),
        ("ultralytics:yolov8x-nothing.yml", ExportError, ""),
    ],
)
def test_unknown_model_names_the_near_misses(factory, kind, near, tmp_path):
    """A misspelt model is refused with what was perhaps meant."""
    with pytest.raises(ExporterError, match="E304") as caught:
        build_model(ModelConfig(factory=factory), base=tmp_path)
    assert isinstance(caught.value, kind)
    assert near in caught.value.help
