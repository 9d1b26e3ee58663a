"""Before a float16 file is written, the float32 network shows whether it fits."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent / "graph"))

from networks import folded

from exporter.artifacts import Digest, Graph, OnnxModel, Outcome, RangeEvidence
from exporter.config import Config, OnnxConfig, ParityConfig, SamplesConfig
from exporter.errors import ExportError
from exporter.half_range import feeds_to_measure, range_check, range_verdict
from exporter.onnx_export import export_onnx, load_onnx
from exporter.samples import Samples
from exporter.workspace import Workspace

CONFIG = Config(samples=SamplesConfig(random=4, edge=False), parity=ParityConfig(batches=(2,)), onnx=OnnxConfig(precision="float16"))


def written(graph: Graph, path: Path, samples: Samples | None = None, config: Config = CONFIG) -> OnnxModel:
    """Export with the check of the ranges."""
    check = range_check(config, feeds_to_measure(config, samples, graph.inputs), graph.folded)
    return export_onnx(graph, path, config.onnx, key="k", check_range=check)


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
    with pytest.raises(ExportError, match="beyond float16") as caught:
        written(graph, tmp_path / "net.onnx")
    assert caught.value.code == "E461"
    assert "(Conv)" in caught.value.facts["found"]
    assert not list(tmp_path.iterdir())
    islands = json.loads(caught.value.help.partition(" = ")[2])
    assert islands == ["large", "small"]
    model = written(graph, tmp_path / "net.onnx", config=CONFIG.replace(onnx=CONFIG.onnx.replace(float32=tuple(islands))))
    assert set(json.loads(model.metadata["exporter.float32"]).values()) >= {"asked for"}
    assert model.ranges is not None
    assert load_onnx(model.path, key="k") == model


def test_bfloat16_has_the_range_of_float32(tmp_path):
    """Nothing is measured where nothing can overflow."""
    graph = folded(Overflowing().eval(), (2, 3, 4, 4))
    config = CONFIG.replace(onnx=OnnxConfig(precision="bfloat16", opset=22))
    assert feeds_to_measure(config, None, graph.inputs) == ()
    assert written(graph, tmp_path / "net.onnx", config=config).ranges is None


class Pooled(nn.Module):
    """Two convolutions with a pooling between them, of values up to ``size``; what comes out is tiny."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.first, self.pool, self.last = nn.Conv2d(3, 4, 1, bias=False), nn.AvgPool2d(4), nn.Conv2d(4, 2, 1)
        with torch.no_grad():
            self.first.weight.fill_(size / 3)
            self.last.weight.fill_(1e-9)
            self.last.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pool(self.first(x)))


def ones(scale: float = 1.0) -> Samples:
    """Recorded samples that are all alike."""
    return Samples({"x": np.full((4, 3, 4, 4), scale, np.float32)}, None)


QUIET = CONFIG.replace(samples=CONFIG.samples.replace(random=0))


def test_a_pass_says_by_how_much(tmp_path):
    """On recorded samples: the largest value and its tensor, how far below the largest number of float16 it is, and which values lose digits."""
    model = written(folded(Pooled(100.0).eval(), (2, 3, 4, 4)), tmp_path / "net.onnx", ones(), QUIET)
    verdict = range_verdict(model.ranges)
    assert (verdict.check, verdict.outcome, verdict.evidence.largest) == ("range", Outcome.PASS, pytest.approx(100))
    assert "largest value 100 in " in verdict.reason
    assert "655 times below 65504" in verdict.reason
    assert "100.0% of one tensor below 6.1e-5, where digits are lost: " in verdict.reason
    assert verdict.evidence.remarks == ()


def test_random_inputs_alone_prove_little(tmp_path):
    """The same network without recorded samples: NOT_RUN, with what the random inputs gave."""
    model = written(folded(Pooled(100.0).eval(), (2, 3, 4, 4)), tmp_path / "net.onnx")
    verdict = range_verdict(model.ranges)
    assert (verdict.outcome, verdict.required) == (Outcome.NOT_RUN, False)
    assert "random inputs prove little" in verdict.reason
    assert verdict.evidence.largest > 50


def test_coarse_values_and_sums_are_remarked(tmp_path):
    """Above 512 the steps are told; sixteen values of 5000 may pass 65504 while a pooling adds them up."""
    model = written(folded(Pooled(5000.0).eval(), (2, 3, 4, 4)), tmp_path / "net.onnx", ones(), QUIET)
    coarse, sums = model.ranges.remarks
    assert "(Conv) 5e+03, steps of 4" in coarse
    assert "(AveragePool) 8e+04" in sums
    assert range_verdict(model.ranges).outcome is Outcome.PASS


class Dying(nn.Module):
    """A convolution whose BatchNorm has one channel with no variance to speak of; ``weight`` is that channel's."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 2, 1)
        with torch.no_grad():
            self.conv.weight.fill_(0.5)
            self.conv.weight[5] = weight
            self.bn.running_var[5] = 1e-12

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.last(torch.relu(self.bn(self.conv(x)))))


def test_what_overflows_is_tied_to_the_running_variance_that_blew_it_up(tmp_path):
    """The error names the BatchNorm, the channel, its variance and its factor, and both ways out."""
    with pytest.raises(ExportError, match="E461") as caught:
        written(folded(Dying(100.0).eval(), (2, 3, 4, 4)), tmp_path / "net.onnx", ones(), QUIET)
    said = caught.value.facts["since"]
    assert said.startswith("channel 5 of bn has a running variance of 1e-12, which multiplies conv by 316 (channels have 1 at the median)")
    assert "clamp its running_var" in caught.value.help
    assert '"conv"' in caught.value.help


def test_what_is_coarse_is_tied_to_it_too(tmp_path):
    """Values of 950 fit; the verdict's remark says where they come from. Without the dead channel there is none."""
    model = written(folded(Dying(1.0).eval(), (2, 3, 4, 4)), tmp_path / "net.onnx", ones(), QUIET)
    assert any(remark.startswith("channel 5 of bn ") and remark.endswith("or clamp") for remark in model.ranges.remarks)
    healthy = Dying(400.0)
    healthy.bn.running_var.fill_(1.0)
    model = written(folded(healthy.eval(), (2, 3, 4, 4)), tmp_path / "healthy.onnx", ones(), QUIET)
    assert model.ranges.largest > 512
    assert not any("running variance" in remark for remark in model.ranges.remarks)


def test_weights_beyond_float16_are_tied_to_it_too(tmp_path):
    """Their convolution stays in float32 by itself; the remark says which BatchNorm made it so."""
    model = written(folded(Dying(300.0).eval(), (2, 3, 4, 4)), tmp_path / "net.onnx", ones(1e-3), QUIET)
    assert any(
        remark.startswith("conv stays in float32, since folded weights are beyond float16: channel 5 of bn") for remark in model.ranges.remarks
    )


def test_new_samples_ask_the_question_again(tmp_path):
    """The file has the same bytes, its record another answer; samples that overflow are an error although the file was up to date."""
    graph = dataclasses.replace(folded(Pooled(100.0).eval(), (2, 3, 4, 4)), digest=Digest("0" * 64))

    def exported(scale: float) -> tuple[OnnxModel, str]:
        workspace = Workspace(QUIET.replace(checkpoint=str(tmp_path / "net.pt")), folder=tmp_path)
        workspace.__dict__.update(graph=graph, samples=ones(scale))
        return workspace.onnx, workspace.records[-1].state

    first, state = exported(1.0)
    assert (state, range_verdict(first.ranges).outcome) == ("made", Outcome.PASS)
    assert exported(1.0) == (first, "up to date")
    second, state = exported(4.0)
    assert state == "made"
    assert (second.digest, second.ranges.largest) == (first.digest, pytest.approx(400))
    with pytest.raises(ExportError, match="E461"):
        exported(1e4)


def test_beyond_2_gib_it_is_not_measured():
    """NOT_RUN with the reason, and it does not keep a run from passing."""
    verdict = range_verdict(RangeEvidence(not_measured="over 2 GiB of weights"))
    assert (verdict.outcome, verdict.required, verdict.reason) == (Outcome.NOT_RUN, False, "not measured: over 2 GiB of weights")
