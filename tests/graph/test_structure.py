"""The structure of a folded graph is judged by itself, and each of its checks can fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from networks import Sequence, folded, trained
from torch import Tensor, nn

from exporter.artifacts import Graph, Outcome, Provenance
from exporter.config import FoldConfig, InputConfig
from exporter.graph import check_structure, fold, trace


def network() -> Sequence:
    return Sequence(conv=nn.Conv2d(3, 4, 3), bn=trained(nn.BatchNorm2d(4)), act=nn.ReLU(), last=trained(nn.BatchNorm2d(4)))


def program_of(module: nn.Module, dtype: str = "float32", shape: tuple[int, ...] = (2, 3, 8, 8)) -> torch.export.ExportedProgram:
    return trace(module.eval(), (InputConfig(name="x", shape=shape, dtype=dtype),)).program


class More(nn.Module):
    """A convolution in place of the folded one that is not what the fold makes of it."""

    def __init__(self, width: int = 4, **parts: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        for name, part in self.named_children():
            if name != "bn":
                x = part(x)
        return self.bn(torch.relu(x))


def with_two_outputs() -> nn.Module:
    class Pair(More):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = super().forward(x)
            return y, y + 1

    return Pair()


def test_a_fold_passes():
    """What was folded is gone, what was refused is there, and nothing else changed; the numbers stand in the line."""
    verdict = check_structure(folded(network()), FoldConfig())
    assert (verdict.check, verdict.subject, verdict.outcome) == ("structure", "torch-fused", Outcome.PASS)
    assert verdict.reason.startswith("1 BatchNorm left, as planned")
    assert "FLOPs" in verdict.reason


def test_borders_and_channels_of_ones_are_no_strangers():
    """What writes a border or a channel of ones is known; at the level ``aggressive`` it may cost more."""
    parts = {"act": nn.ReLU(), "bn": trained(nn.BatchNorm2d(3)), "conv": nn.Conv2d(3, 4, 3, padding=1)}
    for dynamic in ({}, {"0": "n", "2": "h", "3": "w"}):
        config = FoldConfig(level="aggressive")
        traced = trace(Sequence(**parts).eval(), (InputConfig(name="x", shape=(2, 3, 8, 8), dynamic=dynamic),))
        graph = fold(traced, config, provenance=Provenance("graph"))
        assert not graph.refusals
        assert check_structure(graph, config).outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda graph: dataclasses.replace(graph, folded_program=graph.unfused), "2 BatchNorms are left, 1 were refused"),
        (lambda graph: dataclasses.replace(graph, folded_program=program_of(More(act=nn.Sigmoid()))), "not there before: sigmoid"),
        (lambda graph: dataclasses.replace(graph, folded_program=program_of(More(wide=nn.Conv2d(4, 4, 3, padding=1)))), "FLOPs"),
        (
            lambda graph: dataclasses.replace(graph, folded_program=program_of(More().half(), "float16")),
            "conv.weight is of float16 and was of float32",
        ),
        (lambda graph: dataclasses.replace(graph, folded_program=program_of(with_two_outputs())), "the outputs are"),
        (lambda graph: dataclasses.replace(graph, folded_program=program_of(More(), shape=(2, 3, 9, 8))), "the inputs are"),
    ],
    ids=["BatchNorms left", "kinds", "FLOPs", "dtypes", "outputs", "inputs"],
)
def test_each_check_can_fail(change: Callable[[Graph], Graph], said: str):
    """A folded program that is another in one respect fails, and the line says in which."""
    verdict = check_structure(change(folded(network())), FoldConfig())
    assert verdict.outcome is Outcome.FAIL
    assert said in verdict.reason


def test_more_work_is_allowed_where_it_was_asked_for():
    """FLOPs may grow at the level ``aggressive``."""
    graph = dataclasses.replace(folded(network()), folded_program=program_of(More(wide=nn.Conv2d(4, 4, 3, padding=1))))
    assert check_structure(graph, FoldConfig()).outcome is Outcome.FAIL
    assert check_structure(graph, FoldConfig(level="aggressive")).outcome is Outcome.PASS
