"""The search for islands of an engine, on a stand-in for TensorRT that computes in float32 whatever it is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from exporter.artifacts import Outcome
from exporter.cli.app import cli
from exporter.cli.screen import Screen
from exporter.config import BakeConfig, Config, ModelConfig, OnnxConfig, ParityConfig, ReportConfig, SamplesConfig
from exporter.errors import EnvironmentLacking, ModelNotSupported
from exporter.islands import find_islands
from exporter.islands.candidates import SEARCH_LEVEL, EngineMaker
from exporter.onnx_export import Trials
from exporter.workspace import Workspace

NETWORK = """
import torch
from torch import nn


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.factors = nn.Parameter(torch.arange(1.0, 11.0))

    def forward(self, image):
        return (image.flatten(1) + 1.0 - 1.0).sum(1, keepdim=True) * self.factors


def build():
    return Counting().eval()
"""


@pytest.fixture
def workspace(config, tmp_path):
    """The network that the stand-in computes, in float16."""
    (tmp_path / "network.py").write_text(NETWORK)
    torch.save({"factors": torch.arange(1.0, 11.0)}, tmp_path / "net.pt")
    inputs = ({"name": "image", "shape": [2, 1, 8, 8]},)
    return Workspace(
        Config(
            checkpoint=Path("net.pt"),
            model=ModelConfig(factory="network.py:build", inputs=inputs, outputs=("logits",)),
            weights=BakeConfig(choice="raw"),
            onnx=OnnxConfig(precision="float16"),
            tensorrt=config.replace(cache=tmp_path / "cache"),
            samples=SamplesConfig(random=2, edge=False),
            parity=ParityConfig(batches=(2,)),
            report=ReportConfig(directory=Path("work")),
            base=tmp_path,
        )
    )


def test_an_engine_that_needs_none(workspace, scenario, tmp_path):
    """Built quickly and judged once, then built as configured and judged again; no plan is left, and none is in the cache of engines."""
    scenario(layer_dtype="FP16")
    found = find_islands(workspace, engine=True)
    assert (found.candidate, found.outcome, found.float32, found.num_builds) == ("tensorrt", Outcome.PASS, (), 1)
    assert found.verified == ("parity passes, built at optimization level 3 with the configuration as it is",)
    assert [verdict.subject for verdict in found.verdicts] == ["tensorrt"]
    assert not [path for path in (tmp_path / "work").iterdir() if ".plan" in path.name or ".onnx" in path.name or "islands" in path.name]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["timing"]


def test_an_engine_without_a_layer_in_half_precision(workspace):
    """Where TensorRT makes no layer in half precision, only float32 is left, and the message says so; the engine in float32 passed."""
    with pytest.raises(ModelNotSupported, match="every node has to stay in float32") as caught:
        find_islands(workspace, engine=True)
    assert caught.value.code == "E567"
    assert caught.value.help == '[onnx] precision = "float32"'
    assert "the precision that was asked for" in caught.value.facts["found"]


def test_what_a_search_builds(workspace, tmp_path):
    """A trial is built at the level of a search with the timing cache of all builds; the last engine at the level that is configured."""
    trials = Trials(Workspace(workspace.config.replace(onnx=OnnxConfig()), folder=tmp_path / "wide").onnx, "float16", ())
    everything = frozenset(node.name for node in trials.nodes)
    folder = tmp_path / "search"
    maker = EngineMaker(workspace.config, folder, workspace)
    (candidate,) = maker.searched(trials.make(everything, folder / "trial.onnx"))
    assert workspace.config.tensorrt.optimization_level > SEARCH_LEVEL
    settings = json.loads((folder / "trial.plan.json").read_text())["content"]["provenance"]["settings"]
    assert settings["optimization_level"] == SEARCH_LEVEL
    with candidate.open() as runner:
        assert runner.precision == "float16", "it is judged like the others"
    assert len(list((tmp_path / "cache" / "timing").glob("*.cache"))) == 1
    (final,) = maker.final(Workspace(workspace.config.replace(onnx=OnnxConfig()), folder=tmp_path / "final"))
    assert final.name == "tensorrt"
    settings = json.loads((tmp_path / "final" / "net.plan.json").read_text())["content"]["provenance"]["settings"]
    assert settings["optimization_level"] == 3


def test_the_command_needs_a_gpu(workspace, monkeypatch, tmp_path):
    """Without TensorRT or a GPU nothing is begun."""
    (tmp_path / "exporter.toml").write_text('checkpoint = "net.pt"\n[onnx]\nprecision = "float16"\n[report]\ndirectory = "work"\n')
    monkeypatch.chdir(tmp_path)
    with Screen() as screen, pytest.raises(EnvironmentLacking):
        cli.main(["build-trt", "--find-islands"], obj=screen, standalone_mode=False)
    assert not (tmp_path / "work").exists()
