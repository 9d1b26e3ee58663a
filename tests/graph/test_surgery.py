"""A plan is carried out on an exported program: what each of its edits does to the function that the program computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from exporter.artifacts import Digest
from exporter.config import FoldConfig, InputConfig
from exporter.graph import graph_key, trace
from exporter.graph.aten.reading import abstract_graph, count_calls
from exporter.graph.aten.surgery import folded_program
from exporter.graph.planning import Copy, NewNumbers, Plan

PRODUCTS = {
    "one axis": (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 7)),
    "two axes": (nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0), bias=False), (2, 4, 7, 6)),
    "groups": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 6, 6)),
    "same": (nn.Conv2d(4, 6, 3, dilation=2, padding="same"), (2, 4, 6, 6)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5, 5)),
    "transposed, groups": (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), (2, 4, 5, 5)),
}


class Around(nn.Module):
    """A product whose result is read twice, and is an output."""

    def __init__(self, product: nn.Module) -> None:
        super().__init__()
        self.product = product

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.product(torch.sigmoid(x))
        return y, torch.relu(y)


def traced(network: nn.Module, shape: tuple[int, ...], *, dynamic: dict[str, str] | None = None):
    """Return the program of ``network`` and the name of the one linear operator in it."""
    program = trace(network.eval(), (InputConfig(name="x", shape=shape, dynamic=dynamic or {}),)).program
    operators = abstract_graph(program).operators.values()
    return program, [each.name for each in operators if type(each.role).__name__ == "Linear"]


def image(shape: tuple[int, ...]) -> Tensor:
    return torch.rand((3, *shape[1:]), generator=torch.Generator().manual_seed(3))


def numbers(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(np.float64)


def weight_of(product: nn.Module) -> np.ndarray:
    return product.weight.detach().double().numpy()


@pytest.mark.parametrize("name", PRODUCTS)
def test_border_is_added_to_the_output(name):
    """Every reader of the product, and the output of the network, see its result plus the constant."""
    product, shape = PRODUCTS[name]
    program, [operator] = traced(Around(product), shape)
    x = image(shape)
    with torch.inference_mode():
        y = product(torch.sigmoid(x))
    border = numbers((1, *y.shape[1:]), 1)
    changed = folded_program(program, Plan((NewNumbers(operator, weight_of(product), None, border=border),), (), (), ()))
    with torch.inference_mode():
        got = changed.module()(x)
    expected = y + torch.from_numpy(border).float()
    torch.testing.assert_close(got, (expected, torch.relu(expected)))
    assert changed.state_dict["product.border"].shape == border.shape
    assert count_calls(changed) == count_calls(program) + 1


@pytest.mark.parametrize(
    ("name", "dynamic"),
    [*((name, False) for name in PRODUCTS), *((name, True) for name in PRODUCTS if name != "two axes")],  # torch fixes sizes under that stride
)
def test_ones_are_a_channel_of_each_group(name, dynamic):
    """The product sees one channel more in each group, one everywhere and padded like the others; also where sizes are not known."""
    product, shape = PRODUCTS[name]
    axes = {str(axis): f"size_{axis}" for axis in (0, *range(2, len(shape)))} if dynamic else None
    program, [operator] = traced(Around(product), shape, dynamic=axes)
    is_transposed = isinstance(product, nn.ConvTranspose2d)
    ones = numbers((6, 1, *product.kernel_size), 2)
    changed = folded_program(program, Plan((NewNumbers(operator, weight_of(product), None, ones=ones),), (), (), ()))
    x = image(shape)
    if dynamic:
        x = torch.cat([x, x[:, :, :3]], 2)
    weight = torch.from_numpy(ones).float()
    weight = weight.reshape(product.groups, 6 // product.groups, *product.kernel_size) if is_transposed else weight
    call = getattr(functional, f"conv{'_transpose' if is_transposed else ''}{len(shape) - 2}d")
    own = {key: getattr(product, key) for key in ("stride", "padding", "dilation", "groups", *(("output_padding",) if is_transposed else ()))}
    with torch.inference_mode():
        got, relu = changed.module()(x)
        expected = product(torch.sigmoid(x)) + call(torch.ones_like(x[:, : product.groups]), weight, **own)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(relu, torch.relu(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("affine", [True, False], ids=["gamma and beta", "neither"])
def test_batch_norm_that_stays_takes_new_numbers(affine):
    """Weight and bias of a BatchNorm are its gamma and beta; one that has none gets them."""
    norm = nn.BatchNorm2d(4, affine=affine)
    with torch.no_grad():
        norm.running_mean.copy_(torch.arange(4.0))
        norm.running_var.copy_(torch.arange(1.0, 5.0))
    program, _ = traced(Around(norm), (2, 4, 5, 5))
    operator = abstract_graph(program).channel_affines()[0].name
    new = NewNumbers(operator, numbers((4,), 1), numbers((4,), 2))
    changed = folded_program(program, Plan((new,), (), (), ()))
    x = image((2, 4, 5, 5))
    gamma, beta = (torch.from_numpy(array).float() for array in (new.weight, new.bias))
    with torch.inference_mode():
        expected = functional.batch_norm(torch.sigmoid(x), norm.running_mean, norm.running_var, gamma, beta, eps=norm.eps)
        torch.testing.assert_close(changed.module()(x)[0], expected)
    assert torch.equal(changed.state_dict["product.weight"], gamma)


def test_copy_is_read_by_the_readers_that_are_named():
    """The copy gets numbers of its own; whoever is not named keeps reading the original with the original's weight."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return torch.relu(y), torch.sigmoid(y)

    network = Twice()
    program, [operator] = traced(network, (2, 4, 6, 6))
    reader = next(node.name for node in program.graph.nodes if "relu" in str(node.target))
    new = NewNumbers("conv_copy", 2.0 * weight_of(network.conv), numbers((6,), 5))
    changed = folded_program(program, Plan((new,), (), (), (), copies=(Copy(operator, "conv_copy", (reader,)),)))
    x = image((2, 4, 6, 6))
    with torch.inference_mode():
        relu, sigmoid = changed.module()(x)
        torch.testing.assert_close(sigmoid, torch.sigmoid(network.conv(x)))
        torch.testing.assert_close(relu, torch.relu(functional.conv2d(x, 2.0 * network.conv.weight, torch.from_numpy(new.bias).float())))
    assert torch.equal(changed.state_dict["conv.weight"], network.conv.weight)


def test_abstract_graph_knows_a_copy_like_any_operator():
    """A copy stands behind its original, reads the same, and is the producer of its own value."""
    program, [operator] = traced(Around(nn.Conv2d(4, 6, 3)), (2, 4, 6, 6))
    graph = abstract_graph(program)
    reader = graph.users_of(operator)[0].name
    graph.copy_(operator, "copy", (reader,))
    names = list(graph.operators)
    assert names.index("copy") == names.index(operator) + 1
    assert graph.users_of("copy") == [graph.operators[reader]]
    assert graph.operators[reader].inputs == ("copy",)
    assert (graph.values[operator].users, graph.values[operator].is_output, graph.values["copy"].is_output) == ([], True, False)
    assert graph.values[graph.operators["copy"].inputs[1]].users == [operator, "copy"]


def test_level_is_part_of_the_key():
    """A graph that was folded at another level is made again."""
    keys = {graph_key(Digest("0" * 64), "m", (), (), FoldConfig(level=level)) for level in ("conservative", "default", "aggressive")}
    assert len(keys) == 3
