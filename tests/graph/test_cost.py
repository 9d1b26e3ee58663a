"""The cost of a graph follows from its shapes alone, and decides what is taken at ``default``."""

from __future__ import annotations

import pytest
import torch
from networks import Sequence, error_in_float64, folded, trained
from torch import nn

from exporter.artifacts import Cost
from exporter.config import InputConfig
from exporter.graph import trace
from exporter.graph.aten.reading import abstract_graph
from exporter.graph.cost import cost_of_graph, pays


def cost(network: nn.Module, shape: tuple[int, ...], *, dynamic: bool = True) -> Cost:
    """Return the cost of ``network``, for a batch of one where it is dynamic."""
    axes = {} if not dynamic else {"0": "batch"}
    return cost_of_graph(abstract_graph(trace(network.eval(), (InputConfig(name="x", shape=shape, dynamic=axes),)).program))


FLOAT = 4
KNOWN = {
    "convolution": (nn.Conv2d(3, 8, 3), (2, 3, 6, 6), 2 * 8 * 16 * 27 + 8 * 16, 3 * 36 + 8 * 16 + 8 * 27 + 8),
    "depthwise convolution": (nn.Conv2d(8, 8, 3, groups=8, bias=False), (2, 8, 6, 6), 2 * 8 * 16 * 9, 8 * 36 + 8 * 16 + 8 * 9),
    "transposed convolution": (nn.ConvTranspose2d(3, 8, 2, 2, bias=False), (2, 3, 4, 4), 2 * 3 * 16 * 32, 3 * 16 + 8 * 64 + 3 * 32),
    "linear": (nn.Linear(6, 5), (2, 6), 2 * 30 + 5, 6 + 5 + 30 + 5),
    "batch norm": (trained(nn.BatchNorm2d(4)), (2, 4, 3, 3), 2 * 36, 2 * 36 + 16),
    "relu": (nn.ReLU(), (2, 4, 3, 3), 36, 72),
    "views": (nn.Sequential(nn.Flatten(), nn.Unflatten(1, (6, 6)), nn.Dropout()), (2, 4, 3, 3), 0, 0),
}


@pytest.mark.parametrize("name", KNOWN)
def test_cost_of_one_operator(name):
    """FLOPs and bytes are those that one counts by hand; the batch counts as one, views cost nothing."""
    network, shape, flops, numbers = KNOWN[name]
    assert cost(network, shape) == Cost(flops, FLOAT * numbers)


def test_half_precision_moves_half_the_bytes():
    """Bytes follow the dtype, FLOPs do not."""
    conv = nn.Conv2d(3, 8, 3)
    traced = trace(conv.half().eval(), (InputConfig(name="x", shape=(2, 3, 6, 6), dtype="float16"),))
    whole = cost(nn.Conv2d(3, 8, 3), (2, 3, 6, 6))
    assert cost_of_graph(abstract_graph(traced.program)) == Cost(whole.flops, whole.bytes // 2)


def test_it_pays_only_if_every_machine_gains():
    """Fewer FLOPs for more bytes gain on a machine of few FLOPs per byte and lose on one of many, or the other way round."""
    assert pays([Cost(1000, 100)], [Cost(900, 90)])
    assert not pays([Cost(1000, 100)], [Cost(1000, 100)])
    assert not pays([Cost(100_000, 100)], [Cost(1000, 400)])
    assert not pays([Cost(1000, 400)], [Cost(100_000, 100)])


def test_border_is_taken_where_it_pays():
    """Behind a stride the constant map is a quarter of what the BatchNorm reads and writes: it is taken at ``default``, and exact."""
    network = Sequence(relu=nn.ReLU(), bn=trained(nn.BatchNorm2d(8)), conv=nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8))
    graph = folded(network, (2, 8, 16, 16))
    assert [done.batch_norm for done in graph.folded] == ["bn"]
    assert graph.cost_after.bytes < graph.cost_before.bytes
    assert error_in_float64(graph, (2, 8, 16, 16)) <= 1e-10


def test_border_is_left_where_it_does_not():
    """Without a stride the sum with the map moves more than the BatchNorm did: it is left at ``default``, with both costs in the detail."""
    network = Sequence(relu=nn.ReLU(), bn=trained(nn.BatchNorm2d(8)), conv=nn.Conv2d(8, 8, 3, padding=1))
    graph = folded(network, (2, 8, 16, 16))
    assert [refusal.reason.name for refusal in graph.refusals] == ["PADDED"]
    assert "->" in graph.refusals[0].detail


def test_costs_of_a_folded_graph_are_those_of_its_shapes():
    """What the plan says of the graph after folding is what is counted in the folded program itself."""
    network = Sequence(
        a=nn.Conv2d(3, 8, 3, bias=False),
        bn=trained(nn.BatchNorm2d(8)),
        relu=nn.ReLU(),
        norm=trained(nn.BatchNorm2d(8)),
        b=nn.Conv2d(8, 6, 3, stride=2, padding=1, groups=2),
    )
    graph = folded(network, (2, 3, 12, 12))
    assert graph.refusals == ()
    assert graph.cost_after == cost_of_graph(abstract_graph(graph.folded_program))
    assert graph.cost_before == cost_of_graph(abstract_graph(graph.unfused))
    with torch.inference_mode():
        x = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(graph.folded_program.module()(x), graph.unfused.module()(x), rtol=1e-3, atol=1e-4)
