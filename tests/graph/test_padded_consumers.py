"""BatchNorm into convolutions that pad with zeros: exact at every place of the border, for every shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Sequence, error_in_float64, folded, trained
from torch import Tensor, nn
from torch.nn import functional

from exporter.artifacts import Provenance
from exporter.config import FoldConfig, InputConfig
from exporter.graph import fold, fold_error_in_float64, trace
from exporter.graph.algebra import places_inside, shift_of_each_place, shift_of_each_tap

BOUND = 1e-10
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def aggressive(network: nn.Module, shape: tuple[int, ...]):
    """Return the graph of ``network`` folded whatever it costs, behind a ReLU so that nothing goes back."""
    return folded(Sequence(relu=nn.ReLU(), **dict(network.named_children())), shape, level="aggressive")


@settings(max_examples=200)
@given(
    spatial=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    is_transposed=st.booleans(),
    data=st.data(),
    seed=st.integers(0, 999),
)
def test_border_is_what_the_convolution_makes_of_the_shift(spatial, groups, is_transposed, data, seed):
    """The constant map is the convolution of an image of shifts, for any size, kernel, stride, dilation, padding and groups."""
    sizes = [data.draw(st.integers(1, 6)) for _ in range(spatial)]
    kernel = [data.draw(st.integers(1, 7)) for _ in range(spatial)]
    stride = [data.draw(st.integers(1, 3)) for _ in range(spatial)]
    dilation = [data.draw(st.integers(1, 3)) for _ in range(spatial)]
    reach = [wide * (taps - 1) for wide, taps in zip(dilation, kernel, strict=True)]
    least = [0 if is_transposed else max(0, -((size - 1 - far) // 2)) for size, far in zip(sizes, reach, strict=True)]
    most = [((size - 1) * step + far) // 2 if is_transposed else 9 for size, step, far in zip(sizes, stride, reach, strict=True)]
    padding = [data.draw(st.integers(low, max(low, min(low + 3, high)))) for low, high in zip(least, most, strict=True)]
    random = np.random.default_rng(seed)
    weight, t = random.standard_normal((4, 8 // groups, *kernel) if is_transposed else (8, 4 // groups, *kernel)), random.standard_normal(4)
    image = torch.from_numpy(t).reshape(1, 4, *[1] * spatial).expand(1, 4, *sizes)
    call = getattr(functional, f"conv{'_transpose' if is_transposed else ''}{spatial}d")
    expected = call(image, torch.from_numpy(weight), stride=stride, dilation=dilation, padding=padding, groups=groups)
    inside = [
        places_inside(size, out, taps, stride=step, before=before, dilation=wide, is_transposed=is_transposed)
        for size, out, taps, step, before, wide in zip(sizes, expected.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    got = shift_of_each_place(shift_of_each_tap(weight, t, groups=groups, is_transposed=is_transposed), inside)
    assert got.shape == tuple(expected.shape)
    np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=1e-12)


@settings(max_examples=30)
@given(
    spatial=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    size=st.integers(2, 6),
    bias=st.booleans(),
    gamma=st.sampled_from(["mixed", "zero", "negative"]),
    var=st.sampled_from(["usual", "tiny"]),
    seed=st.integers(0, 99),
)
def test_before_any_convolution_that_pads(spatial, groups, kernel, stride, dilation, size, bias, gamma, var, seed):
    """The BatchNorm goes, also where the kernel is larger than the input, where gamma is zero or negative, and where a variance is tiny."""
    conv = CONVOLUTIONS[spatial](4, 8, kernel, stride=stride, dilation=dilation, padding=dilation * kernel // 2 + 1, groups=groups, bias=bias)
    shape = (2, 4, *[size] * spatial)
    graph = aggressive(Sequence(bn=trained(NORMS[spatial](4), seed=seed, gamma=gamma, var=var), conv=conv), shape)
    assert [done.direction for done in graph.folded] == ["ahead"]
    assert error_in_float64(graph, shape, level="aggressive") <= BOUND


@settings(max_examples=20)
@given(
    spatial=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 1),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_before_any_transposed_convolution(spatial, groups, kernel, stride, dilation, padding, bias, seed):
    """Each place of a transposed convolution sees other taps; the constant map has what each of them misses."""
    layer = TRANSPOSED[spatial](
        4, 6, kernel, stride=stride, padding=padding, dilation=dilation, output_padding=max(stride, dilation) - 1, groups=groups, bias=bias
    )
    shape = (2, 4, *[4] * spatial)
    graph = aggressive(Sequence(bn=trained(NORMS[spatial](4), seed=seed), conv=layer), shape)
    assert [done.direction for done in graph.folded] == ["ahead"]
    assert error_in_float64(graph, shape, level="aggressive") <= BOUND


class Same(nn.Conv2d):
    """A convolution that pads by itself so that stride alone decides the size, more behind than in front."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (0, 1, 2, 3)))


class Padded(nn.Conv2d):
    """The same with padding of the convolution's own inside."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (1, 0, 0, 2)))


@pytest.mark.parametrize(
    "conv",
    [Same(4, 6, 3), Padded(4, 6, 3), nn.Conv2d(4, 6, 3, padding="same", dilation=2), nn.Conv2d(4, 4, (1, 5), padding=(2, 1), groups=4)],
    ids=["padding in front of it", "padding on both", "same", "depthwise, wider than it sees"],
)
def test_zeros_from_elsewhere_are_counted(conv):
    """Zeros that an operator puts in front of the convolution, more on one side than on the other, are zeros that the shift misses."""
    shape = (2, 4, 6, 5)
    graph = aggressive(Sequence(bn=trained(nn.BatchNorm2d(4)), conv=conv), shape)
    assert [done.direction for done in graph.folded] == ["ahead"]
    assert error_in_float64(graph, shape, level="aggressive") <= BOUND


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_sizes_that_are_known_at_run_time_only(layer, groups):
    """A network of any height and width gets a channel of ones in each group; it stays exact at sizes that were never traced."""
    network = Sequence(relu=nn.ReLU(), bn=trained(nn.BatchNorm2d(4)), conv=layer(4, 8, 3, padding=1, groups=groups))
    dynamic = {"0": "batch", "2": "height", "3": "width"}
    traced = trace(network.eval(), (InputConfig(name="x", shape=(2, 4, 6, 6), dynamic=dynamic),))
    graph = fold(traced, FoldConfig(level="aggressive"), provenance=Provenance("graph"))
    assert graph.refusals == ()
    assert graph.folded_program.state_dict["conv.folded_weight"].numel() == 8 * 9 * (4 // groups + 1)
    for shape in ((2, 4, 6, 6), (1, 4, 2, 9), (3, 4, 11, 5)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        assert fold_error_in_float64(graph.unfused, (x,), FoldConfig(level="aggressive")) <= BOUND


def test_another_fold_scales_the_border():
    """Two BatchNorms ahead of one padded convolution both go: the second one scales what the first one left, and adds its own."""
    network = Sequence(relu=nn.ReLU(), a=trained(nn.BatchNorm2d(4), seed=1), b=trained(nn.BatchNorm2d(4), seed=2), conv=nn.Conv2d(4, 6, 3, padding=1))
    graph = folded(network, (2, 4, 6, 6), level="aggressive")
    assert [done.batch_norm for done in graph.folded] == ["a", "b"]
    assert error_in_float64(graph, (2, 4, 6, 6), level="aggressive") <= BOUND


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_border_is_rounded_once(dtype):
    """The constant map equals, bit for bit, the float64 map rounded once to the weight's dtype."""
    from exporter.graph.algebra import affine_from_batch_norm, rounded_once

    network = Sequence(relu=nn.ReLU(), bn=trained(nn.BatchNorm2d(4)), conv=nn.Conv2d(4, 8, 3, padding=1)).to(getattr(torch, dtype))
    graph = folded(network, (2, 4, 5, 5), dtype=dtype, level="aggressive")
    norm = network.bn
    numbers = [tensor.double().detach().numpy() for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]
    _, t = affine_from_batch_norm(*numbers, norm.eps)
    image = torch.from_numpy(t).reshape(1, 4, 1, 1).expand(1, 4, 5, 5)
    taps = shift_of_each_tap(network.conv.weight.double().detach().numpy(), t)
    inside = places_inside(5, 5, 3, stride=1, before=1, dilation=1)
    exact = shift_of_each_place(taps, [inside, inside])
    np.testing.assert_allclose(exact, functional.conv2d(image, network.conv.weight.double().detach(), padding=1).numpy(), atol=1e-12)
    got = graph.folded_program.state_dict["conv.border"].detach()
    assert str(got.dtype) == f"torch.{dtype}"
    assert (got.double().numpy() == rounded_once(exact, dtype).astype("float64")).all()


class Behind(nn.Module):
    """BatchNorm -> a convolution that pads -> one of one tap, as the keys of a mobile attention are made; perhaps with another reader between."""

    def __init__(self, outputs: int = 4, groups: int = 1, kernel: int = 1, *, is_shared: bool = False) -> None:
        super().__init__()
        self.bn, self.down = trained(nn.BatchNorm2d(8)), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False)
        self.pointwise, self.is_shared = nn.Conv2d(8, outputs, kernel, groups=groups), is_shared

    def forward(self, x: Tensor) -> Tensor:
        down = self.down(self.bn(torch.sigmoid(x)))
        made = self.pointwise(down)
        return torch.sigmoid(made) + torch.sigmoid(down).mean() if self.is_shared else torch.sigmoid(made)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_border_goes_through_a_convolution_of_one_tap(groups):
    """It is added to what the second convolution makes, which has fewer channels, and is exact there."""
    graph = folded(Behind(groups=groups), (2, 8, 9, 7))
    assert [fold.batch_norm for fold in graph.folded] == ["bn"]
    borders = {name: tuple(tensor.shape) for name, tensor in graph.folded_program.state_dict.items() if name.endswith("border")}
    assert borders == {"pointwise.border": (1, 4, 5, 4)}
    assert "down" in graph.folded[0].changed
    assert error_in_float64(graph, (2, 8, 9, 7)) <= BOUND


@pytest.mark.parametrize(
    "network", [Behind(outputs=16), Behind(kernel=2), Behind(is_shared=True)], ids=["more channels", "more taps", "another reader"]
)
def test_a_border_stays_at_its_convolution(network):
    """Where the second convolution makes more, sees more, or is not alone, the border stays where it is."""
    graph = folded(network, (2, 8, 9, 7))
    assert [name for name in graph.folded_program.state_dict if name.endswith("border")] == ["down.border"]
    assert error_in_float64(graph, (2, 8, 9, 7)) <= BOUND
