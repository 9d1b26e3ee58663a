"""Products and sums with constants that stand alone go into the products beside them, exactly; they are neither BatchNorms nor refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import IMAGE, Sequence, error_in_float64, folded, trained
from torch import Tensor, nn

from exporter.artifacts import Graph
from exporter.config import FoldConfig
from exporter.graph import check_structure
from exporter.graph.explaining import explain

BOUND = 1e-10
OPERATIONS: dict[str, Callable[[Tensor, Tensor | float], Tensor]] = {
    "x * c": lambda x, c: x * c,
    "c * x": lambda x, c: c * x,
    "x / c": lambda x, c: x / c,
    "x + c": lambda x, c: x + c,
    "x - c": lambda x, c: x - c,
    "c - x": lambda x, c: c - x,
}


class Alone(nn.Module):
    """One operation with a constant, in front of a product or behind it; what is around them lets nothing pass."""

    def __init__(self, product: nn.Module, operation: str, constant: Tensor | float, *, behind: bool = True) -> None:
        super().__init__()
        self.product, self.operation, self.behind = product, OPERATIONS[operation], behind
        self.constant = nn.Parameter(constant) if isinstance(constant, Tensor) else constant

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(x)
        x = self.operation(self.product(x), self.constant) if self.behind else self.product(self.operation(x, self.constant))
        return torch.sigmoid(x)


def kinds(graph: Graph) -> list[str]:
    return sorted(node.target._schema.name.partition("::")[2] for node in graph.folded_program.graph.nodes if node.op == "call_function")


def one(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.1


@settings(max_examples=40)
@given(
    operation=st.sampled_from(sorted(OPERATIONS)),
    constant=st.sampled_from(["channels", "one", "number"]),
    product=st.sampled_from(["conv", "grouped", "transposed", "linear"]),
    bias=st.booleans(),
    behind=st.booleans(),
    seed=st.integers(0, 99),
)
def test_beside_any_product(operation, constant, product, bias, behind, seed):
    """It is gone, is reported apart, and the network stays the same function; a product gets a bias only where something is added."""
    channels = 4
    module = {
        "conv": lambda: nn.Conv2d(4, 4, 3, bias=bias),
        "grouped": lambda: nn.Conv2d(4, 4, 3, groups=2, stride=2, bias=bias),
        "transposed": lambda: nn.ConvTranspose2d(4, 4, 1, bias=bias),
        "linear": lambda: nn.Linear(4, 4, bias=bias),
    }[product]()
    shape = (2, 4, 8, 8) if product != "linear" else (2, 5, 4)
    per_channel = (channels, *[1] * (len(shape) - 2)) if product != "linear" else (channels,)
    value = {"channels": one(seed, *per_channel), "one": one(seed, *[1] * len(per_channel)), "number": 0.75}[constant]
    graph = folded(Alone(module, operation, value, behind=behind), shape)
    assert len(graph.absorbed) == 1
    assert (graph.folded, graph.refusals, graph.num_batch_norms) == ((), (), 0)
    assert graph.absorbed[0].direction == ("back" if behind else "ahead")
    assert not {"mul", "div", "add", "sub"} & set(kinds(graph))
    has_bias = any(name.endswith("bias") for name in graph.folded_program.state_dict)
    assert has_bias == (bias or "+" in operation or "-" in operation)
    assert error_in_float64(graph, shape) <= BOUND
    assert check_structure(graph, FoldConfig()).outcome.value == "PASS"


class Residual(nn.Module):
    """A residual block with a layer scale, as many transformers and MobileNetV4 have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1, bias=False), trained(nn.BatchNorm2d(4))
        self.drop = nn.Dropout()
        self.gamma = nn.Parameter(one(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.bn(self.conv(x))) * self.gamma.view(1, -1, 1, 1)


def test_layer_scale_of_a_residual_block():
    """It follows the BatchNorm into the convolution, through a dropout; the BatchNorm alone is counted as one."""
    graph = folded(Residual(), (2, 4, 8, 8))
    assert ([fold.batch_norm for fold in graph.folded], graph.num_batch_norms) == (["bn"], 1)
    assert [(fold.producer, fold.pattern, fold.num_channels) for fold in graph.absorbed] == [("conv", "conv2d+dropout+mul", 4)]
    assert kinds(graph) == ["add", "conv2d", "dropout"]
    assert error_in_float64(graph, (2, 4, 8, 8)) <= BOUND


def test_it_makes_room_for_a_batch_norm():
    """A BatchNorm behind a factor behind a convolution goes where the factor went."""
    graph = folded(Sequence(conv=Alone(nn.Conv2d(3, 4, 3), "c * x", 2.0).product, scale=Factor(), bn=trained(nn.BatchNorm2d(4)), end=nn.Sigmoid()))
    assert ([fold.batch_norm for fold in graph.folded], len(graph.absorbed)) == (["bn"], 1)
    assert kinds(graph) == ["conv2d", "sigmoid"]
    assert error_in_float64(graph) <= BOUND


class Factor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * x


class Squares(nn.Module):
    """A StarReLU: a factor and an offset behind what is no product, in front of one that is."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.tensor([0.9])), nn.Parameter(torch.tensor([-0.4]))
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(self.scale * torch.relu(x) ** 2 + self.bias))


def test_a_factor_and_an_offset_in_a_row():
    """Both go ahead, one after the other; the constants are single numbers, and take the channels of the product."""
    graph = folded(Squares())
    assert sorted(fold.pattern for fold in graph.absorbed) == ["add+conv2d", "mul+conv2d"]
    assert {fold.num_channels for fold in graph.absorbed} == {3}
    assert error_in_float64(graph) <= BOUND


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gamma = nn.Conv2d(3, 3, 3, padding=1), nn.Parameter(one(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.sigmoid(y * self.gamma) + y


class Output(Shared):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return torch.sigmoid(y * self.gamma), y


class InPlace(Shared):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(x).mul_(self.gamma))


class Padded(Shared):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(torch.sigmoid(x) + self.gamma))


class Places(Shared):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(x) * self.gamma.reshape(3, 1)[:1].expand(8, 8))


class Gelu(Shared):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(x)
        return torch.sigmoid(self.conv(0.5 * (x * (1.0 + torch.erf(x / 2**0.5)))))


class Product(nn.Module):
    """A matrix product has no place for a bias: the sum would be made again."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(one(1, 4, 4)), nn.Parameter(one(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(torch.sigmoid(x) @ self.weight + self.bias)


KEPT = {
    "another reader": (Shared, IMAGE),
    "an output": (Output, IMAGE),
    "in place": (InPlace, IMAGE),
    "an offset in front of zero padding": (Padded, IMAGE),
    "not of each channel": (Places, IMAGE),
    "part of a GELU": (Gelu, IMAGE),
    "a sum behind a matrix product": (Product, (2, 5, 4)),
}


@pytest.mark.parametrize("case", KEPT)
def test_it_stays_where_it_cannot_go_or_nothing_is_won(case):
    """It is no refusal, and the program is as it was."""
    make, shape = KEPT[case]
    graph = folded(make(), shape)
    assert (graph.absorbed, graph.folded, graph.refusals, graph.num_batch_norms) == ((), (), (), 0)
    assert graph.ops_after == graph.ops_before
    assert error_in_float64(graph, shape) == 0.0


@pytest.mark.parametrize("level", ["conservative", "default", "aggressive"])
def test_levels_and_keep(level):
    """It goes back at each level, ahead at all but one; at none does it add a border; `keep` names it like a BatchNorm."""
    constant = one(1, 3, 1, 1)
    assert len(folded(Alone(nn.Conv2d(3, 3, 3), "x * c", constant), level=level).absorbed) == 1
    assert len(folded(Alone(nn.Conv2d(3, 3, 3), "x * c", constant, behind=False), level=level).absorbed) == (level != "conservative")
    assert not folded(Padded(), level=level).absorbed
    scaled = Sequence(conv=nn.Conv2d(3, 4, 3), scale=Factor(), end=nn.Sigmoid())
    assert len(folded(scaled, level=level).absorbed) == 1
    assert not folded(scaled, keep=("scale",), level=level).absorbed


def test_numbers_that_do_not_fit():
    """In half precision a factor that overflows stays where it is."""
    graph = folded(Alone(nn.Conv2d(3, 3, 1), "x * c", torch.full((3, 1, 1), 60000.0)).half(), dtype="float16")
    assert len(graph.absorbed) == 1  # small weights times it are finite
    network = Alone(nn.Conv2d(3, 3, 1), "x * c", torch.full((3, 1, 1), 60000.0))
    nn.init.constant_(network.product.weight, 2.0)
    assert not folded(network.half(), dtype="float16").absorbed


def test_it_is_explained():
    """`--explain` finds it by its name, with what took it."""
    graph = folded(Sequence(conv=nn.Conv2d(3, 4, 3), scale=Factor(), end=nn.Sigmoid()))
    (found,) = explain(graph.sketch, (*graph.folded, *graph.absorbed), graph.refusals, "scale")
    assert (found.batch_norm, found.outcome) == ("scale", "folded")
    assert [each.module for each in found.neighbours if each.takes_it] == ["conv"]
