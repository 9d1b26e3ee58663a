"""What cannot be folded exactly is refused with its reason and the culprits, and the network stays the same function."""

from __future__ import annotations

import pytest
import torch
from networks import IMAGE, Sequence, error_in_float64, folded, trained
from torch import Tensor, nn

from exporter.artifacts import RefusalReason

BOUND = 1e-10


def bn(channels: int = 4, seed: int = 0) -> nn.Module:
    return trained(nn.BatchNorm2d(channels), seed=seed)


class TwoConsumers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), bn()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + torch.relu(y)


class ConvIsOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), bn()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return self.bn(y), y


class LinearOnSequence(nn.Module):
    """BatchNorm1d on (N, L, C) acts on L, not on the Linear's outputs; with L equal to C nothing crashes to show it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(6, 5), trained(nn.BatchNorm1d(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.linear(x))


class StuckInTraining(nn.BatchNorm2d):
    """A BatchNorm whose ``train`` ignores its argument."""

    def train(self, mode: bool = True) -> StuckInTraining:
        return super().train(True)


class TrainsInForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), bn()

    def forward(self, x: Tensor) -> Tensor:
        self.bn.train()
        return self.bn(self.conv(x))


class FunctionalTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), bn()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(self.conv(x), self.bn.running_mean.clone(), self.bn.running_var.clone(), training=True)


class GatedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(x))


class WritesStatistics(nn.Module):
    """A forward that changes the running mean before it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), bn()

    def forward(self, x: Tensor) -> Tensor:
        self.bn.running_mean.add_(1.0)
        return self.bn(self.conv(x))


class SharedNorm(nn.Module):
    """One BatchNorm called twice: behind a convolution, and between two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), bn()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(torch.relu(self.bn(self.conv(x)))))


class HalfLinear(nn.Module):
    """A BatchNorm behind the concatenation of a convolution and of something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), bn(7)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(torch.cat([self.conv(x), torch.relu(x)], 1)))


class NormBetweenTwoUsers(nn.Module):
    """conv -> a -> b, where a third reader sees the output of a: b must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 4, 3), bn(4, 1), bn(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.conv(x))
        return self.b(y) + torch.relu(y)


REASON = RefusalReason
CASES = {
    "second consumer": (TwoConsumers(), IMAGE, {"bn": REASON.OTHER_CONSUMER}, "relu"),
    "convolution is an output": (ConvIsOutput(), IMAGE, {"bn": REASON.GRAPH_OUTPUT}, "conv"),
    "linear on (N, L, C), L == C": (LinearOnSequence(), (2, 5, 6), {"bn": REASON.WRONG_AXIS}, "linear"),
    "linear on (N, L, C), L unlike C": (
        Sequence(linear=nn.Linear(6, 5), bn=trained(nn.BatchNorm1d(7)), act=nn.ReLU()),
        (2, 7, 6),
        {"bn": REASON.WRONG_AXIS},
        "linear",
    ),
    "one norm behind a convolution and behind a relu": (SharedNorm(), IMAGE, {"bn (call 2)": REASON.NOT_LINEAR}, "relu"),
    "no running statistics": (
        Sequence(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4, track_running_stats=False)),
        IMAGE,
        {"bn": REASON.NO_RUNNING_STATISTICS},
        "",
    ),
    "behind a relu": (Sequence(conv=nn.Conv2d(3, 4, 3), relu=nn.ReLU(), bn=bn()), IMAGE, {"bn": REASON.NOT_LINEAR}, "relu"),
    "behind a functional relu": (Sequence(conv=nn.Conv2d(3, 4, 3), act=nn.Hardtanh(), bn=bn()), IMAGE, {"bn": REASON.NOT_LINEAR}, "hardtanh"),
    "behind a max pool": (Sequence(conv=nn.Conv2d(3, 4, 3), pool=nn.MaxPool2d(2), bn=bn()), IMAGE, {"bn": REASON.BLOCKED}, "pool"),
    "behind a padded average pool": (
        Sequence(conv=nn.Conv2d(3, 4, 3), pool=nn.AvgPool2d(3, 1, 1), bn=bn()),
        IMAGE,
        {"bn": REASON.BLOCKED},
        "pool",
    ),
    "behind zero padding": (Sequence(conv=nn.Conv2d(3, 4, 3), pad=nn.ZeroPad2d(1), bn=bn()), IMAGE, {"bn": REASON.BLOCKED}, "pad"),
    "between input and relu": (Sequence(bn=bn(3), relu=nn.ReLU(), conv=nn.Conv2d(3, 4, 3)), IMAGE, {"bn": REASON.NOT_LINEAR}, "input x"),
    "before a convolution that pads zeros": (
        Sequence(relu=nn.ReLU(), bn=bn(3), conv=nn.Conv2d(3, 4, 3, padding=1)),
        IMAGE,
        {"bn": REASON.PADDED},
        "conv",
    ),
    "before a transposed convolution": (
        Sequence(relu=nn.ReLU(), bn=bn(3), conv=nn.ConvTranspose2d(3, 4, 2, 2)),
        IMAGE,
        {"bn": REASON.PADDED},
        "conv",
    ),
    "between two relus": (Sequence(relu=nn.ReLU(), bn=bn(3), act=nn.ReLU()), IMAGE, {"bn": REASON.NOT_LINEAR}, "act"),
    "half of a concatenation is no product": (HalfLinear(), IMAGE, {"bn": REASON.NOT_LINEAR}, "relu"),
    "conv subclass that activates": (Sequence(conv=GatedConv(3, 4, 3), bn=bn()), IMAGE, {"bn": REASON.NOT_LINEAR}, "sigmoid"),
    "bn behind a shared folded bn": (NormBetweenTwoUsers(), IMAGE, {"b": REASON.OTHER_CONSUMER}, "relu"),
}


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_refused_with_its_reason(case):
    """The BatchNorm is kept, the reason is the true one, a culprit is named, and the outputs are those of the unfolded network."""
    network, shape, expected, culprit = CASES[case]
    graph = folded(network, shape)
    assert {refusal.batch_norm: refusal.reason for refusal in graph.refusals} == expected
    assert all(culprit in " ".join(refusal.culprits) + refusal.detail for refusal in graph.refusals)
    assert len(graph.folded) + len(graph.refusals) == graph.num_batch_norms
    assert error_in_float64(graph, shape) <= BOUND


STUCK = {
    "train() is overridden": Sequence(conv=nn.Conv2d(3, 4, 3), bn=trained(StuckInTraining(4))),
    "train() is called in forward": TrainsInForward(),
    "training=True in forward": FunctionalTraining(),
}


@pytest.mark.parametrize("case", STUCK, ids=list(STUCK))
def test_training_mode_is_refused(case):
    """A BatchNorm that normalises with the batch's statistics in eval mode is refused as such, and nothing pretends otherwise."""
    network = STUCK[case].eval()
    graph = folded(network)
    assert [refusal.reason for refusal in graph.refusals] == [RefusalReason.TRAINING]
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.allclose(graph.folded_program.module()(x), network(x), atol=1e-6)


def test_statistics_that_forward_writes_are_no_constants():
    """A running mean that the network itself changes cannot be folded."""
    graph = folded(WritesStatistics())
    assert [(refusal.reason, refusal.culprits) for refusal in graph.refusals] == [(RefusalReason.NOT_CONSTANT, ("add_",))]


def test_numbers_that_the_dtype_cannot_hold_are_refused():
    """A fold whose weights would overflow half precision is refused: the unfolded network may still be finite."""
    norm = trained(nn.BatchNorm2d(4))
    with torch.no_grad():
        norm.weight.fill_(30000.0)
        norm.running_var.fill_(1e-4)
    network = Sequence(conv=nn.Conv2d(3, 4, 3), bn=norm).to(torch.float16)
    graph = folded(network, dtype="float16")
    assert [refusal.reason for refusal in graph.refusals] == [RefusalReason.OUT_OF_RANGE]
    assert "not finite in float16" in graph.refusals[0].detail


def test_patterns_of_the_configuration_keep_a_batch_norm():
    """``fold.keep`` leaves the named BatchNorms alone and says so; the others are folded."""
    network = Sequence(c1=nn.Conv2d(3, 4, 3), stem_bn=bn(), c2=nn.Conv2d(4, 4, 3), bn=bn())
    graph = folded(network, keep=("stem_*",))
    assert [(refusal.batch_norm, refusal.reason) for refusal in graph.refusals] == [("stem_bn", RefusalReason.ISOLATED)]
    assert "stem_*" in graph.refusals[0].detail
    assert [fold.batch_norm for fold in graph.folded] == ["bn"]


def test_batch_norm_in_a_nested_graph_is_counted_and_refused():
    """A BatchNorm inside a branch of ``torch.cond`` is not overlooked: it is refused by name."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), bn()

        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda y: self.bn(self.conv(y)), lambda y: self.conv(y) * 2.0, (x,))

    graph = folded(Branching())
    assert graph.num_batch_norms == 1
    assert [(refusal.batch_norm, refusal.reason) for refusal in graph.refusals] == [("true_graph_0.batch_norm", RefusalReason.NOT_LINEAR)]
    assert "nested graph" in graph.refusals[0].detail
