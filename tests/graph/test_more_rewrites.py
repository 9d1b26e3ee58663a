"""Copies of convolutions, signs that pass a maximum, factors that pass a ReLU: exact, and refused where they are not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Sequence, error_in_float64, folded, trained
from torch import Tensor, nn

BOUND = 1e-10
SHAPE = (2, 4, 8, 8)


class Shared(nn.Module):
    """A convolution that a BatchNorm and a ReLU read; with ``is_output`` it is returned as well."""

    def __init__(self, *, is_output: bool = False, again: bool = False) -> None:
        super().__init__()
        self.conv, self.bn, self.second = nn.Conv2d(4, 6, 3, bias=False), trained(nn.BatchNorm2d(6), seed=1), trained(nn.BatchNorm2d(6), seed=2)
        self.is_output, self.again = is_output, again

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = self.conv(x)
        z = torch.sigmoid(self.bn(y)) + torch.relu(y)
        if self.again:
            z = z * torch.sigmoid(self.second(y))
        return (y, z) if self.is_output else z


@pytest.mark.parametrize("is_output", [False, True], ids=["another reader", "an output"])
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_convolution_with_other_readers_is_copied(is_output, again):
    """At ``aggressive`` each BatchNorm gets a copy of the convolution; whoever else reads it reads what it was."""
    network = Shared(is_output=is_output, again=again)
    graph = folded(network, SHAPE, level="aggressive")
    assert [done.batch_norm for done in graph.folded] == (["bn", "second"] if again else ["bn"])
    assert error_in_float64(graph, SHAPE, level="aggressive") <= BOUND
    assert torch.equal(graph.folded_program.state_dict["conv.weight"], network.conv.weight)
    assert graph.cost_after.flops > graph.cost_before.flops


def test_copy_that_does_not_pay_is_not_made():
    """At ``default`` a convolution that costs more than the BatchNorm is left alone, and the refusal says what a copy would cost."""
    graph = folded(Shared(), SHAPE)
    assert [refusal.reason.name for refusal in graph.refusals] == ["OTHER_CONSUMER"]
    assert "aggressive" in graph.refusals[0].detail
    assert "FLOPs" in graph.refusals[0].detail


def test_copy_behind_a_folded_batch_norm_is_not_made():
    """``conv -> a -> b`` where others read ``conv`` and ``a``: one of the two takes a copy, and all of it stays exact."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(4, 4, 1), trained(nn.BatchNorm2d(4), seed=1), trained(nn.BatchNorm2d(4), seed=2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            z = self.a(y)
            return torch.sigmoid(self.b(z)) + torch.sigmoid(z) + torch.sigmoid(y)

    graph = folded(Chain(), SHAPE, level="aggressive")
    assert {*(done.batch_norm for done in graph.folded), *(kept.batch_norm for kept in graph.refusals)} == {"a", "b"}
    assert graph.folded
    assert error_in_float64(graph, SHAPE, level="aggressive") <= BOUND


@settings(max_examples=15)
@given(
    groups=st.sampled_from([1, 2]),
    pool=st.sampled_from([{"kernel_size": 2}, {"kernel_size": 3, "stride": 1, "padding": 1}]),
    padding=st.integers(0, 1),
    gamma=st.sampled_from(["mixed", "zero", "negative"]),
    var=st.sampled_from(["usual", "tiny"]),
    seed=st.integers(0, 99),
)
def test_signs_pass_a_maximum_into_what_reads_it(groups, pool, padding, gamma, var, seed):
    """Behind a max pool the size of each scale goes back and its sign ahead, through zero padding too; no work is added."""
    network = Sequence(
        conv=nn.Conv2d(4, 4, 3, groups=groups),
        pool=nn.MaxPool2d(**pool),
        bn=trained(nn.BatchNorm2d(4), seed=seed, gamma=gamma, var=var),
        last=nn.Conv2d(4, 6, 3, padding=padding, groups=groups),
    )
    graph = folded(network, SHAPE)
    assert [done.batch_norm for done in graph.folded] == ["bn"]
    assert graph.ops_after == graph.ops_before - 1
    assert error_in_float64(graph, SHAPE) <= BOUND


def test_signs_do_not_pass_where_nothing_can_take_them():
    """With a ReLU behind it, a BatchNorm with a negative scale behind a max pool stays."""
    graph = folded(Sequence(conv=nn.Conv2d(4, 4, 3), pool=nn.MaxPool2d(2), bn=trained(nn.BatchNorm2d(4)), act=nn.ReLU()), SHAPE, level="aggressive")
    assert [refusal.reason.name for refusal in graph.refusals] == ["BLOCKED"]
    assert error_in_float64(graph, SHAPE, level="aggressive") <= BOUND


def unshifted(*, sign: float = 1.0, seed: int = 0) -> nn.BatchNorm2d:
    """Return a BatchNorm with no shift; its scales have one sign."""
    norm = trained(nn.BatchNorm2d(4), seed=seed)
    with torch.no_grad():
        norm.weight.copy_(sign * (norm.weight.abs() + 1e-8))
        norm.bias.zero_()
        norm.running_mean.zero_()
    return norm


BENT = {"relu": nn.ReLU(), "relu in place": nn.ReLU(inplace=True), "leaky relu": nn.LeakyReLU(0.2), "prelu": nn.PReLU(4)}


@pytest.mark.parametrize("name", BENT)
def test_positive_scales_pass_a_relu_on_their_way_back(name):
    """A BatchNorm without shift whose scales are positive goes through a ReLU and its like into the convolution in front of it."""
    graph = folded(Sequence(conv=nn.Conv2d(4, 4, 3), act=BENT[name], bn=unshifted(), last=nn.Sigmoid()), SHAPE)
    assert [(done.batch_norm, done.direction) for done in graph.folded] == [("bn", "back")]
    assert error_in_float64(graph, SHAPE) <= BOUND


@pytest.mark.parametrize("name", [name for name in BENT if name != "relu in place"])
def test_positive_scales_pass_a_relu_on_their_way_ahead(name):
    """The same ahead, into the convolution behind it, which may pad."""
    graph = folded(Sequence(first=nn.Sigmoid(), bn=unshifted(), act=BENT[name], conv=nn.Conv2d(4, 4, 3, padding=1)), SHAPE)
    assert [(done.batch_norm, done.direction) for done in graph.folded] == [("bn", "ahead")]
    assert error_in_float64(graph, SHAPE) <= BOUND


@pytest.mark.parametrize("bn", [unshifted(sign=-1.0), trained(nn.BatchNorm2d(4))], ids=["negative scales", "a shift"])
def test_nothing_else_passes_a_relu(bn):
    """With a negative scale or a shift the BatchNorm stays, for the reason that it stood behind a ReLU all along."""
    graph = folded(Sequence(conv=nn.Conv2d(4, 4, 3), act=nn.ReLU(), bn=bn, last=nn.Sigmoid()), SHAPE, level="aggressive")
    assert [refusal.reason.name for refusal in graph.refusals] == ["NOT_LINEAR"]
    assert error_in_float64(graph, SHAPE, level="aggressive") <= BOUND
