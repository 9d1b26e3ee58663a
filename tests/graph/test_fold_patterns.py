"""Folds through other operators and into what comes behind: each pattern is gone after the fold, and the network is the same function."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import IMAGE, Sequence, error_in_float64, folded, trained
from torch import Tensor, nn
from torch.nn import functional

BOUND = 1e-10


def bn(channels: int = 4, seed: int = 0, *, gamma: str = "mixed") -> nn.Module:
    """Return a BatchNorm2d with the statistics of a trained one."""
    return trained(nn.BatchNorm2d(channels), seed=seed, gamma=gamma)


class Lambda(nn.Module):
    """A function as a module, over the modules that it is given."""

    def __init__(self, function, **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Called(nn.Module):
    """One convolution called twice, with a BatchNorm of its own each time or with one for both."""

    def __init__(self, *, norms: int) -> None:
        super().__init__()
        self.conv, self.a = nn.Conv2d(3, 3, 3, padding=1), bn(3, 1)
        self.b = bn(3, 2) if norms == 2 else self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.conv(torch.relu(self.a(self.conv(x)))))


class CalledOnceWithout(nn.Module):
    """One convolution called twice, behind the second call no BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), bn(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(self.bn(self.conv(x))))


class Tied(nn.Module):
    """Two convolutions with one weight, as the same tensor or as two tensors in one memory."""

    def __init__(self, *, as_view: bool) -> None:
        super().__init__()
        self.c, self.d, self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), bn(3, 1), bn(3, 2)
        self.d.weight = nn.Parameter(self.c.weight.data) if as_view else self.c.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.d(torch.relu(self.a(self.c(x)))))


class RepVgg(nn.Module):
    """Three branches of the same input, added up: 3 x 3, 1 x 1 and a BatchNorm alone."""

    def __init__(self, *, groups: int = 1, in_place: bool = False) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=False), bn(4, 1))
        self.narrow = nn.Sequential(nn.Conv2d(4, 4, 1, groups=groups, bias=False), bn(4, 2))
        self.identity = bn(4, 3)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        if self.in_place:
            total = 0
            for branch in (self.identity, self.wide, self.narrow):
                total += branch(x)
            return torch.relu(total)
        return torch.relu(self.wide(x) + self.narrow(x) + self.identity(x))


class Frozen(nn.Module):
    """A frozen BatchNorm, as torchvision writes it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        norm = bn(channels)
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        mean, var = self.running_mean.reshape(1, -1, 1, 1), self.running_var.reshape(1, -1, 1, 1)
        scale = weight * (var + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


class FrozenBatchNorm2d(Frozen):
    """The same under the name that marks it as a BatchNorm."""


class Standardised(nn.Conv2d):
    """A convolution that normalises its weight with a BatchNorm over it, as timm's StdConv2d does."""

    def forward(self, x: Tensor) -> Tensor:
        weight = functional.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0, eps=1e-6)
        return functional.conv2d(x, weight.reshape_as(self.weight), self.bias)


def lambda_(function, **parts: nn.Module) -> nn.Module:
    return Lambda(function, **parts)


conv = nn.Conv2d
PATTERNS = {
    # behind a product, through ...
    "dropout": (Sequence(conv=conv(3, 4, 3), drop=nn.Dropout2d(), bn=bn()), IMAGE, 1),
    "identity": (Sequence(conv=conv(3, 4, 3), same=nn.Identity(), bn=bn()), IMAGE, 1),
    "average pool": (Sequence(conv=conv(3, 4, 3), pool=nn.AvgPool2d(2), bn=bn()), IMAGE, 1),
    "padded average pool that counts no padding": (
        Sequence(conv=conv(3, 4, 3), pool=nn.AvgPool2d(3, 1, 1, count_include_pad=False), bn=bn()),
        IMAGE,
        1,
    ),
    "global average pool": (Sequence(conv=conv(3, 4, 3), pool=nn.AdaptiveAvgPool2d(1), bn=bn()), IMAGE, 1),
    "mean over space": (lambda_(lambda m, x: m.bn(m.conv(x).mean((2, 3))), conv=conv(3, 4, 3), bn=trained(nn.BatchNorm1d(4))), IMAGE, 1),
    "nearest upsampling": (Sequence(conv=conv(3, 4, 3), up=nn.Upsample(scale_factor=2), bn=bn()), IMAGE, 1),
    "bilinear upsampling": (Sequence(conv=conv(3, 4, 3), up=nn.Upsample(scale_factor=2, mode="bilinear"), bn=bn()), IMAGE, 1),
    "bicubic upsampling": (Sequence(conv=conv(3, 4, 3), up=nn.Upsample(scale_factor=2, mode="bicubic"), bn=bn()), IMAGE, 1),
    "reflecting padding": (Sequence(conv=conv(3, 4, 3), pad=nn.ReflectionPad2d(1), bn=bn()), IMAGE, 1),
    "replicating padding": (Sequence(conv=conv(3, 4, 3), pad=nn.ReplicationPad2d(1), bn=bn()), IMAGE, 1),
    "circular padding": (Sequence(conv=conv(3, 4, 3), pad=nn.CircularPad2d(1), bn=bn()), IMAGE, 1),
    "pixel shuffle": (Sequence(conv=conv(3, 16, 3), shuffle=nn.PixelShuffle(2), bn=bn()), IMAGE, 1),
    "max pool, scales not negative": (Sequence(conv=conv(3, 4, 3), pool=nn.MaxPool2d(2), bn=trained(nn.BatchNorm2d(4), gamma="zero")), IMAGE, 1),
    "concatenation of convolutions": (
        lambda_(lambda m, x: m.bn(torch.cat([m.a(x), m.b(x)], 1)), a=conv(3, 4, 3), b=conv(3, 2, 3), bn=bn(6)),
        IMAGE,
        1,
    ),
    "sum of convolutions": (lambda_(lambda m, x: m.bn(m.a(x) + m.b(x)), a=conv(3, 4, 1), b=conv(3, 4, 1, bias=False), bn=bn()), IMAGE, 1),
    "sum of convolutions in place": (lambda_(lambda m, x: m.bn(m.a(x).add_(m.b(x))), a=conv(3, 4, 1), b=conv(3, 4, 1), bn=bn()), IMAGE, 1),
    "parts of a convolution": (
        lambda_(
            lambda m, x: m.a((parts := m.conv(x).split((4, 4), 1))[0]).sum((2, 3)) + torch.sigmoid(parts[1]).sum((2, 3)), conv=conv(3, 8, 3), a=bn()
        ),
        IMAGE,
        1,
    ),
    "a slice": (lambda_(lambda m, x: m.bn(m.conv(x)[:, 2:6]), conv=conv(3, 8, 3), bn=bn()), IMAGE, 1),
    "flattened linear": (
        lambda_(lambda m, x: m.bn(m.linear(x).flatten(0, 1)).reshape(-1, 5, 4), linear=nn.Linear(6, 4), bn=trained(nn.BatchNorm1d(4))),
        (2, 5, 6),
        1,
    ),
    "transposed linear": (
        lambda_(lambda m, x: m.bn(m.linear(x).transpose(1, 2)), linear=nn.Linear(6, 4), bn=trained(nn.BatchNorm1d(4))),
        (2, 5, 6),
        1,
    ),
    # into a product, other forms
    "transposed convolution": (Sequence(conv=nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, bias=False), bn=bn(6)), (2, 4, 6, 6), 1),
    "transposed convolution with groups": (Sequence(conv=nn.ConvTranspose2d(4, 6, 3, groups=2), bn=bn(6)), (2, 4, 6, 6), 1),
    "weight normalisation": (Sequence(conv=nn.utils.parametrizations.weight_norm(conv(3, 4, 3)), bn=bn()), IMAGE, 1),
    "spectral normalisation": (Sequence(conv=nn.utils.parametrizations.spectral_norm(conv(3, 4, 3)), bn=bn()), IMAGE, 1),
    "standardised weight": (Sequence(conv=Standardised(3, 4, 3), relu=nn.ReLU()), IMAGE, 1),
    "standardised weight and BatchNorm": (Sequence(conv=Standardised(3, 4, 3), bn=bn()), IMAGE, 2),
    "frozen": (Sequence(conv=conv(3, 4, 3), bn=FrozenBatchNorm2d(4)), IMAGE, 1),
    "product and sum with constants": (Sequence(conv=conv(3, 4, 3), bn=Frozen(4)), IMAGE, 1),
    "instance norm with running statistics": (
        Sequence(conv=conv(3, 4, 3), bn=trained(nn.InstanceNorm2d(4, affine=True, track_running_stats=True))),
        IMAGE,
        1,
    ),
    "called twice, two norms": (Called(norms=2), IMAGE, 2),
    "called twice, one norm": (Called(norms=1), IMAGE, 2),
    "called twice, once without": (CalledOnceWithout(), IMAGE, 1),
    "tied weight": (Tied(as_view=False), IMAGE, 2),
    "weights in one memory": (Tied(as_view=True), IMAGE, 2),
    "weight is read as well": (lambda_(lambda m, x: m.bn(m.conv(x)) * m.conv.weight.abs().sum(), conv=conv(3, 4, 3), bn=bn()), IMAGE, 1),
    # in front of a product
    "before a convolution": (Sequence(bn=bn(3), conv=conv(3, 4, 3)), IMAGE, 1),
    "before a 1 x 1 convolution, behind a relu": (Sequence(relu=nn.ReLU(), bn=bn(3), conv=conv(3, 4, 1, bias=False)), IMAGE, 1),
    "before a convolution with groups": (Sequence(bn=bn(4), conv=conv(4, 6, 3, groups=2)), (2, 4, 6, 6), 1),
    "before a convolution that copies its border": (Sequence(bn=bn(3), conv=conv(3, 4, 3, padding=1, padding_mode="reflect")), IMAGE, 1),
    "before a linear": (Sequence(bn=trained(nn.BatchNorm1d(6)), linear=nn.Linear(6, 4)), (2, 6), 1),
    "before a flattened linear": (Sequence(bn=bn(3), flat=nn.Flatten(), linear=nn.Linear(3 * 64, 4, bias=False)), IMAGE, 1),
    "before a global average pool and a linear": (
        Sequence(relu=nn.ReLU(), bn=bn(3), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), linear=nn.Linear(3, 4)),
        IMAGE,
        1,
    ),
    "before two convolutions": (
        lambda_(lambda m, x: m.a(y := m.bn(torch.relu(x))) + torch.relu(m.b(y)), bn=bn(3), a=conv(3, 4, 1), b=conv(3, 4, 1)),
        IMAGE,
        1,
    ),
    "two in a row before a convolution": (Sequence(relu=nn.ReLU(), a=bn(3, 1), b=bn(3, 2), conv=conv(3, 4, 1)), IMAGE, 2),
    "before a transposed convolution of one tap": (Sequence(relu=nn.ReLU(), bn=bn(4), conv=nn.ConvTranspose2d(4, 6, 1, groups=2)), (2, 4, 6, 6), 1),
    "of a residual sum before a 1 x 1 convolution": (
        lambda_(lambda m, x: m.conv(m.bn(torch.relu(x) + x)), bn=bn(3), conv=conv(3, 4, 1)),
        IMAGE,
        1,
    ),
    # beside products
    "parallel branches": (RepVgg(), (2, 4, 6, 6), 3),
    "parallel branches with groups": (RepVgg(groups=2), (2, 4, 6, 6), 3),
    "parallel branches, the norm taken away": (
        lambda_(lambda m, x: m.conv(y := torch.relu(x)) - m.bn(y), conv=conv(4, 4, 3, padding=1), bn=bn()),
        (2, 4, 6, 6),
        1,
    ),
    "behind a residual sum of convolutions": (
        lambda_(lambda m, x: m.bn(m.a(y := torch.relu(x)) + m.b(y) + y), a=conv(4, 4, 3, padding=1, groups=4), b=conv(4, 4, 1, groups=4), bn=bn()),
        (2, 4, 6, 6),
        1,
    ),
    "reshaped like another": (
        lambda_(lambda m, x: m.bn((y := m.linear(x)).flatten(0, 1)).reshape_as(y), linear=nn.Linear(6, 4), bn=trained(nn.BatchNorm1d(4))),
        (2, 5, 6),
        1,
    ),
    "parallel branches added in place": (RepVgg(in_place=True), (2, 4, 6, 6), 3),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern_is_folded_exactly(name):
    """No BatchNorm is left, and in float64 the folded network is the unfolded one."""
    network, shape, num = PATTERNS[name]
    graph = folded(network, shape)
    assert graph.refusals == ()
    assert len(graph.folded) == graph.num_batch_norms == num
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert fold_error(graph, x) <= BOUND


def fold_error(graph, x: Tensor) -> float:
    """Return the error of the fold alone on ``x``, whose batch is that of the trace."""
    from exporter.config import FoldConfig
    from exporter.graph import fold_error_in_float64

    return fold_error_in_float64(graph.unfused, (x,), FoldConfig())


def test_parallel_branches_leave_one_convolution():
    """Three branches end up as one convolution and a ReLU on either side."""
    graph = folded(RepVgg(), (2, 4, 6, 6))
    assert graph.ops_after == 3
    assert {fold.pattern for fold in graph.folded} == {"conv2d+bn", "sum of conv2d+conv2d+bn"}
    assert set(graph.folded_program.state_dict) == {"wide.0.weight", "wide.0.bias"}


def test_weight_of_several_calls_gets_a_copy_for_each_that_changes():
    """The call without a BatchNorm keeps the weight as it was; the other has its own."""
    network = CalledOnceWithout()
    state = folded(network).folded_program.state_dict
    assert torch.equal(state["conv.weight"].detach(), network.conv.weight.detach())
    assert not torch.equal(state["conv.folded_weight"].detach(), network.conv.weight.detach())


def test_in_place_change_behind_a_batch_norm_stops_the_fold_ahead():
    """``y = bn(x); x.relu_(); conv(y)``: without its own memory ``y`` would see the change, so the BatchNorm stays."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        z = torch.sigmoid(x)
        y = m.bn(z)
        z.mul_(-1.0)
        return m.conv(y) + z.sum()

    graph = folded(Lambda(forward, bn=bn(3), conv=conv(3, 4, 1)))
    assert [refusal.batch_norm for refusal in graph.refusals] == ["bn"]
    assert "in place" in graph.refusals[0].detail
    assert error_in_float64(graph) <= BOUND


def test_slices_that_overlap_are_not_scaled():
    """A slice beside another of the same channels has another reader: the fold would change what it sees."""
    network = Lambda(lambda m, x: m.bn((y := m.conv(x))[:, 0:4]).sum((2, 3)) + torch.relu(y[:, 2:6]).sum((2, 3)), conv=conv(3, 8, 3), bn=bn())
    graph = folded(network)
    assert [refusal.reason.name for refusal in graph.refusals] == ["OTHER_CONSUMER"]
    assert error_in_float64(graph) <= BOUND


@settings(max_examples=40)
@given(
    groups=st.sampled_from([1, 2, 4]),
    multiple=st.integers(1, 2),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(["none", "reflect", "circular", "replicate"]),
    bias=st.booleans(),
    gamma=st.sampled_from(["mixed", "zero", "negative"]),
    var=st.sampled_from(["usual", "tiny"]),
    seed=st.integers(0, 99),
)
def test_before_any_convolution_without_zeros_at_its_border(groups, multiple, kernel, stride, dilation, mode, bias, gamma, var, seed):
    """A BatchNorm between a ReLU and a convolution goes into the convolution, whatever its shape."""
    padding = {} if mode == "none" else {"padding": 1, "padding_mode": mode}
    product = conv(4, 4 * multiple, kernel, stride=stride, dilation=dilation, groups=groups, bias=bias, **padding)
    graph = folded(Sequence(relu=nn.ReLU(), bn=trained(nn.BatchNorm2d(4), seed=seed, gamma=gamma, var=var), conv=product), (2, 4, 7, 7))
    assert [fold.batch_norm for fold in graph.folded] == ["bn"]
    assert error_in_float64(graph, (2, 4, 7, 7)) <= BOUND


@settings(max_examples=30)
@given(
    spatial=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_behind_any_transposed_convolution(spatial, groups, kernel, stride, padding, bias, seed):
    """A BatchNorm behind a transposed convolution is folded along the outputs of each group, also where cells hold the bias alone."""
    product, normalisation = {
        1: (nn.ConvTranspose1d, nn.BatchNorm1d),
        2: (nn.ConvTranspose2d, nn.BatchNorm2d),
        3: (nn.ConvTranspose3d, nn.BatchNorm3d),
    }[spatial]
    layer = product(4, 6, kernel, stride=stride, padding=min(padding, kernel - 1), output_padding=stride - 1, groups=groups, bias=bias)
    shape = (2, 4, *[4] * spatial)
    graph = folded(Sequence(conv=layer, bn=trained(normalisation(6), seed=seed)), shape)
    assert [fold.pattern for fold in graph.folded] == [f"conv_transpose{spatial}d+bn"]
    assert error_in_float64(graph, shape) <= BOUND


@settings(max_examples=20)
@given(kernel=st.sampled_from([1, 3, 5]), dilation=st.integers(1, 2), groups=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
def test_branches_of_any_kernel(kernel, dilation, groups, seed):
    """A BatchNorm beside a convolution that keeps the size becomes a tap on its diagonal, also in groups and with dilation."""
    size = dilation * (kernel - 1) // 2
    product = conv(4, 4, kernel, padding=size, dilation=dilation, groups=groups)
    graph = folded(Lambda(lambda m, x: m.conv(torch.relu(x)) + m.bn(torch.relu(x)), conv=product, bn=bn(4, seed)), (2, 4, 9, 9))
    assert len(graph.folded) + len(graph.refusals) == 1
    assert error_in_float64(graph, (2, 4, 9, 9)) <= BOUND
