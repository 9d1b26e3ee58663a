"""A BatchNorm directly behind one that stays becomes part of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Sequence, error_in_float64, folded, trained
from torch import Tensor, nn

from exporter.graph.algebra import affine_from_batch_norm, rounded_once

BOUND = 1e-10
SHAPE = (2, 4, 8, 8)


def two(first: nn.Module, second: nn.Module) -> nn.Module:
    """Return two norms out of reach of the other folds."""
    return Sequence(before=nn.Sigmoid(), first=first, bn=second, behind=nn.Sigmoid())


@settings(max_examples=20)
@given(
    gamma=st.sampled_from(["mixed", "zero", "negative"]),
    var=st.sampled_from(["usual", "tiny"]),
    affine=st.booleans(),
    first_affine=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_is_exact(gamma, var, affine, first_affine, seed):
    """The second goes into the first, which stays, and nothing changes in float64."""
    second = trained(nn.BatchNorm2d(4, affine=affine), seed=seed, gamma=gamma, var=var)
    graph = folded(two(trained(nn.BatchNorm2d(4, affine=first_affine), seed=seed + 1, gamma=gamma), second), SHAPE)
    assert [(done.batch_norm, done.producer, done.pattern) for done in graph.folded] == [("bn", "first", "batch_norm+bn")]
    assert [refusal.batch_norm for refusal in graph.refusals] == ["first"]
    assert error_in_float64(graph, SHAPE) <= BOUND


def test_a_norm_that_the_user_keeps_takes_it_too():
    """What ``fold.keep`` names stays in the network and may take the one behind it."""
    network = Sequence(conv=nn.Conv2d(3, 4, 3), first=trained(nn.BatchNorm2d(4)), bn=trained(nn.BatchNorm2d(4), seed=1))
    graph = folded(network, keep=("first",))
    assert [(done.batch_norm, done.producer) for done in graph.folded] == [("bn", "first")]
    assert error_in_float64(graph, keep=("first",)) <= BOUND


def test_one_module_that_is_called_twice_stays_itself_in_the_first_call():
    """The two calls share gamma and beta: the one that takes the other gets tensors of its own, and a third keeps the old ones."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = trained(nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return torch.sigmoid(self.bn(self.bn(torch.sigmoid(x)))), torch.sigmoid(self.bn(torch.tanh(x)))

    graph = folded(Twice(), SHAPE)
    assert len(graph.folded) == 1
    assert len(graph.refusals) == 2
    assert error_in_float64(graph, SHAPE) <= BOUND


class Read(nn.Module):
    """Something else reads what the first norm makes."""

    def __init__(self, *, as_output: bool) -> None:
        super().__init__()
        self.first, self.bn, self.as_output = trained(nn.BatchNorm2d(4)), trained(nn.BatchNorm2d(4), seed=1), as_output

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        between = self.first(torch.sigmoid(x))
        return torch.sigmoid(self.bn(between)), between if self.as_output else torch.tanh(between)


class Batch(nn.Module):
    """A norm with the statistics of the batch in front."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn = nn.BatchNorm2d(4, track_running_stats=False), trained(nn.BatchNorm2d(4), seed=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.bn(self.first(torch.sigmoid(x))))


class Turned(nn.Module):
    """The second norm acts on another axis than the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn = trained(nn.BatchNorm2d(8)), trained(nn.BatchNorm2d(8), seed=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.bn(self.first(torch.sigmoid(x)).transpose(1, 2)))


CASES = {
    "another reader": (Read(as_output=False), SHAPE),
    "an output": (Read(as_output=True), SHAPE),
    "statistics of the batch": (Batch(), SHAPE),
    "another axis": (Turned(), (2, 8, 8, 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused(name):
    """Another reader, an output in between, batch statistics, another axis: the BatchNorm stays, and nothing changes."""
    network, shape = CASES[name]
    graph = folded(network, shape)
    assert "bn" in [refusal.batch_norm for refusal in graph.refusals]
    assert error_in_float64(graph, shape) <= BOUND


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_it_is_rounded_once(dtype):
    """Gamma and beta equal, bit for bit, the float64 fold rounded once."""
    kind = getattr(torch, dtype)
    first, second = trained(nn.BatchNorm2d(4)).to(kind), trained(nn.BatchNorm2d(4), seed=1).to(kind)
    graph = folded(two(first, second), SHAPE, dtype=dtype)
    wide = [[getattr(norm, name).detach().double().numpy() for name in ("weight", "bias", "running_mean", "running_var")] for norm in (first, second)]
    s, t = affine_from_batch_norm(*wide[1], second.eps)
    expected = rounded_once(s * wide[0][0], dtype), rounded_once(s * wide[0][1] + t, dtype)
    for name, numbers in zip(("first.weight", "first.bias"), expected, strict=True):
        made = graph.folded_program.state_dict[name].detach().double().numpy()
        assert np.array_equal(made, numbers.astype(np.float64))
