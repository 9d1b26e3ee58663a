"""Where an engine departs inside, on a stand-in for TensorRT and the GPU that hands out what it is told to (see ``tests/contract``)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from exporter.artifacts import Outcome
from exporter.cli.app import cli
from exporter.cli.screen import Screen
from exporter.config import BakeConfig, Config, ModelConfig, ParityConfig, ReportConfig, SamplesConfig
from exporter.engine import build_engine, parse_profiles, plan_key, probe
from exporter.errors import EngineBuildError, ModelNotSupported
from exporter.gates import Gates, candidates_of
from exporter.onnx_export import open_onnx
from exporter.runners import TensorrtRunner
from exporter.verify import NamedFeed, localise_engine
from exporter.workspace import Workspace

FEEDS = (NamedFeed("4 samples", "recorded", {"image": np.random.default_rng(0).random((4, 1, 8, 8), np.float32)}, 4, 4),)
RIGHT = {"name": "row_sums"}


@pytest.fixture
def model(tmp_path):
    """The network of the stand-in: the sum of each row times 1 to 10."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], name="/flatten"),
        helper.make_node("ReduceSum", ["flat", "axes"], ["row_sums"], name="/sum", keepdims=1),
        helper.make_node("Identity", ["row_sums"], ["same"], name="/same"),
        helper.make_node("Mul", ["same", "classes"], ["logits"], name="/times"),
    ]
    constants = [numpy_helper.from_array(np.array([1]), "axes"), numpy_helper.from_array(np.arange(1, 11, dtype=np.float32), "classes")]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    made = helper.make_model(helper.make_graph(nodes, "sums", [image], [logits], constants), opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    onnx.save(made, str(tmp_path / "sums.onnx"))
    return open_onnx(tmp_path / "sums.onnx")


@pytest.fixture
def make_plan(config, model, tmp_path):
    """Return a function that builds a plan."""

    def make(**settings):
        profiles = parse_profiles((), model.inputs, batch=8)
        return build_engine(model, tmp_path / "sums.plan", config.replace(**settings), profiles, key="0" * 64)

    return make


@pytest.fixture
def looked(config, model, make_plan, scenario):
    """Return a function that says what the stand-in hands out and returns what is said of it."""

    def look(*tensors, feeds=FEEDS, **more):
        scenario(debug_tensors=tensors, **more)
        plan = make_plan(debug_tensors=True)
        with TensorrtRunner(plan, config) as runner:
            return localise_engine(runner.observe, plan, model, feeds)

    return look


def test_the_setting_decides_the_plan_and_stands_in_its_sidecar(make_plan, config, model, run_cli):
    """Another key, a fact of the sidecar that ``inspect`` shows, and no race."""
    profiles, support = parse_profiles((), model.inputs, batch=8), probe(config)
    assert plan_key(model.digest, config.replace(debug_tensors=True), profiles, support) != plan_key(model.digest, config, profiles, support)
    plan = make_plan(debug_tensors=True)
    assert json.loads(plan.sidecar_path.read_text())["content"]["debug_tensors"] is True
    assert "debug tensors" in run_cli("inspect", plan.path).stdout
    assert "debug_tensors" in candidates_of(plan, Config())[0].not_raced
    assert candidates_of(make_plan(), Config())[0].not_raced == ""


def test_the_first_tensor_that_departs_is_named_with_its_node(looked):
    """In the order in which the engine wrote them, with what was allowed, and how many agree before; later ones say nothing new."""
    told = looked({"name": "flat", "of": "image"}, {"name": "row_sums", "times": 1.01}, {"name": "same", "times": 1.5})
    assert told.startswith("first divergence: tensor 'row_sums' (FLOAT, ReduceSum, node '/sum', 2 of 4; by name) differs by 1.0e-02 where 1e-04 is")
    assert told.endswith("allowed, 1 before it agree, on 4 samples; of 3 tensors that the engine wrote, compared: 3 by name")


def test_rounding_is_no_divergence(looked):
    """Within the floor of the precision nothing is named, and the line says where to look then."""
    told = looked({"name": "row_sums", "times": 1 + 5e-5})
    assert told.startswith("no tensor that could be compared departs")


def test_an_overflow_of_half_precision_itself_is_named_too(config, make_plan, model, scenario):
    """Where ONNX Runtime makes an infinity in the file's precision as well, the floor alone decides."""
    scenario(debug_tensors=[{"name": "row_sums", "nan": True}])
    plan = make_plan(debug_tensors=True)
    large = NamedFeed("large", "edge", {"image": np.full((2, 1, 8, 8), 3e38, np.float32)}, 2, 2)
    with TensorrtRunner(plan, config) as runner:
        assert localise_engine(runner.observe, plan, model, (large,)).startswith("first divergence: tensor 'row_sums'")


def test_a_tensor_of_another_name_is_found_through_its_layer(looked):
    """The inspector's nodes lead to the one value that leaves them; an earlier tensor of the same nodes is a step on the way to it."""
    nodes = "[ONNX Layer: /sum]\x1e[ONNX Layer: /same]"
    layers = [{"Name": name, "LayerType": "Myelin", "Metadata": nodes} for name in ("__myl_a", "__myl_b")]
    told = looked({"name": "__myl_a", "times": 3.0}, {"name": "__myl_b", "times": 1.01}, inspected=layers)
    assert "tensor '__myl_b' (FLOAT, Identity, node '/same', 3 of 4; by its layer's nodes) differs by 1.0e-02" in told
    assert told.endswith("compared: 1 by its layer's nodes; 1 not, a step on the way to a later one: __myl_a")


def test_what_is_not_compared_is_said(looked):
    """Unread types, names that nothing answers to, and another layout of the same values are counted and named; none of them is the culprit."""
    told = looked(
        {"name": "__x"}, {"name": "__y", "of": "image"}, {"name": "row_sums", "dtype": "FP8"}, {"name": "flat", "of": "image", "shape": [64, 4]}
    )
    assert told.startswith("no tensor that could be compared departs")
    assert "compared: none; 2 not, no one value of the file answers to it: __x, __y; 1 not, FP8 is not read: row_sums" in told
    assert told.endswith("1 not, of another shape than the file's value of that name: flat")
    turned = looked({"name": "flat", "of": "image", "turned": True, "shape": [4, 64]}, RIGHT)
    assert "compared: 1 by name; 1 not, its values have another order: flat" in turned


@pytest.mark.parametrize("name", ["row_sums", "__x"])
def test_the_first_nan_is_named(looked, name):
    """A NaN that the file does not have is named, in a tensor that is compared with nothing too."""
    told = looked({"name": "flat", "of": "image"}, {"name": name, "nan": True})
    assert f"the first NaN or infinity is in tensor {name!r}" in told
    assert told.startswith("first divergence: tensor 'row_sums'" if name == "row_sums" else "no tensor")


def test_an_engine_that_cannot_be_looked_into_is_said(looked, make_plan, config, model):
    """Everything fused, no feed in the profiles: a remark of the verdict, by its own words."""
    with pytest.raises(ModelNotSupported, match="cannot be searched") as caught:
        looked()
    assert (caught.value.code, "fused" in caught.value.facts["found"]) == ("E528", True)
    far = dataclasses.replace(FEEDS[0], feed={"image": np.ones((64, 1, 9, 9), np.float32)}, batch=64)
    with pytest.raises(ModelNotSupported) as caught:
        looked(RIGHT, feeds=(far,))
    assert "profiles" in caught.value.facts["found"]


def test_what_goes_wrong_in_the_callback_is_an_error(looked):
    """A copy that CUDA refuses is that error, no silent gap."""
    with pytest.raises(EngineBuildError) as caught:
        looked({"name": "row_sums", "stream": 0})
    assert caught.value.code == "E523"


NETWORK = """
import torch
from torch import nn


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.factors = nn.Parameter(torch.arange(10.0))

    def forward(self, image):
        return image.flatten(1).sum(1, keepdim=True) * self.factors


def build():
    return Counting().eval()
"""


@pytest.fixture
def workspace(config, tmp_path):
    """A network like that of the stand-in, with other factors: its engine fails parity."""
    (tmp_path / "network.py").write_text(NETWORK)
    torch.save({"factors": torch.arange(2.0, 12.0)}, tmp_path / "net.pt")
    return Workspace(
        Config(
            checkpoint=Path("net.pt"),
            model=ModelConfig(factory="network.py:build", inputs=({"name": "image", "shape": [2, 1, 8, 8]},), outputs=("logits",)),
            weights=BakeConfig(choice="raw"),
            tensorrt=config.replace(cache=tmp_path / "cache", debug_tensors=True),
            samples=SamplesConfig(random=2, edge=False),
            parity=ParityConfig(batches=(2,)),
            report=ReportConfig(directory=Path("work")),
            base=tmp_path,
        )
    )


def test_a_fail_of_parity_says_where(workspace, scenario):
    """The verdict of an engine with debug tensors names the tensor; of one from another ONNX file it says that it was not looked for, and why."""
    (node,) = [node for node in onnx.load(workspace.onnx.path).graph.node if node.op_type == "ReduceSum"]
    scenario(debug_tensors=[{"name": node.output[0], "times": 1.5}])
    plan = workspace.build(workspace.onnx)
    (verdict,) = Gates(workspace).parity(candidates_of(plan, workspace.config))
    assert verdict.outcome is Outcome.FAIL
    assert verdict.evidence.localisation.startswith(f"first divergence: tensor {node.output[0]!r} (FLOAT, ReduceSum, node")
    other = dataclasses.replace(plan, provenance=dataclasses.replace(plan.provenance, made_from={"onnx": "sha256:0"}))
    (verdict,) = Gates(workspace).parity(candidates_of(other, workspace.config))
    assert verdict.evidence.localisation == ""
    assert any("another ONNX file" in remark for remark in verdict.evidence.remarks)


def test_the_command_takes_the_setting(workspace, monkeypatch):
    """``--debug-tensors`` reaches the build: a plan with the setting is written."""
    monkeypatch.chdir(workspace.config.base)
    settings = workspace.config.tensorrt
    Path("exporter.toml").write_text(
        'checkpoint = "net.pt"\n[model]\nfactory = "network.py:build"\noutputs = ["logits"]\n[[model.inputs]]\nname = "image"\nshape = [2, 1, 8, 8]\n'
        f'[weights]\nchoice = "raw"\n[tensorrt]\npython = "{settings.python}"\ncache = "{settings.cache}"\n'
    )
    with Screen() as screen:
        assert cli.main(["build-trt", "--debug-tensors", "-o", "a.plan"], obj=screen, standalone_mode=False) == 0
    assert json.loads(Path("a.plan.json").read_text())["content"]["debug_tensors"] is True
