"""BatchNorm beside products with a constant matrix, on either side of the data, and one of each of a batch."""

from __future__ import annotations

import pytest
import torch
from networks import error_in_float64, folded, trained
from torch import Tensor, nn

from exporter import fold
from exporter.graph.replay import apply_plan

BOUND = 1e-10


class Product(nn.Module):
    """``call`` with a constant matrix, and a BatchNorm behind or in front of it."""

    def __init__(self, call, *sizes: int, channels: int, is_behind: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(sizes, generator=generator))
        self.bn = trained(nn.BatchNorm1d(channels))
        self.call, self.is_behind = call, is_behind

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(x)
        return torch.sigmoid(self.bn(self.call(x, self.weight)) if self.is_behind else self.call(self.bn(x), self.weight))


CASES = {
    "mm": (Product(torch.mm, 6, 5, channels=5), (4, 6)),
    "matmul": (Product(torch.matmul, 6, 5, channels=5), (4, 6)),
    "matrix first": (Product(lambda x, w: w @ x, 5, 6, channels=5), (2, 6, 7)),
    "one matrix for each of a batch": (Product(lambda x, w: torch.bmm(w, x.t().reshape(3, 6, -1)), 3, 5, 6, channels=5), (7, 18)),
    "transposed behind": (Product(lambda x, w: (x @ w).transpose(1, 2), 6, 5, channels=5), (2, 7, 6)),
    "a weight that is computed": (Product(lambda x, w: x @ w.t().mul(2.0), 5, 6, channels=5), (4, 6)),
    "in front of mm": (Product(torch.mm, 6, 5, channels=6, is_behind=False), (4, 6)),
    "in front of matrix first": (Product(lambda x, w: w @ x, 5, 6, channels=6, is_behind=False), (2, 6, 7)),
}


@pytest.mark.parametrize("name", CASES)
def test_batch_norm_beside_a_matrix_product_is_folded(name):
    """It goes, its shift is added to the product, and nothing changes in float64."""
    network, shape = CASES[name]
    graph = folded(network, shape)
    assert [done.batch_norm for done in graph.folded] == ["bn"]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    from exporter.config import FoldConfig
    from exporter.graph import fold_error_in_float64

    assert fold_error_in_float64(graph.unfused, (x,), FoldConfig()) <= BOUND


def test_shift_does_not_pass_into_one_matrix_for_each_of_a_batch():
    """The shift would be another constant for each matrix: the BatchNorm in front of it stays."""

    class Batch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bn = nn.Parameter(torch.ones(3, 5, 6)), trained(nn.BatchNorm1d(6))

        def forward(self, x: Tensor) -> Tensor:
            return torch.bmm(self.weight, self.bn(torch.sigmoid(x).t().reshape(3, 6, -1)))

    graph = folded(Batch(), (7, 18), level="aggressive")
    assert [refusal.batch_norm for refusal in graph.refusals] == ["bn"]


@pytest.mark.parametrize("name", ["mm", "matrix first", "in front of mm"])
def test_plan_of_a_matrix_product_is_applied_again(name):
    """A plan knows where the bias of a product stands that has no place for one."""
    network, shape = CASES[name]
    done = fold(network.eval(), torch.zeros(shape))
    weights = {key: tensor.detach().numpy() for key, tensor in network.state_dict().items()}
    again = apply_plan(done.plan, weights)
    assert {key: tensor.tolist() for key, tensor in again.items()} == {key: tensor.tolist() for key, tensor in done.state_dict().items()}


def test_two_inputs_are_no_weight():
    """A product of two values that depend on the input stays what it is."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = trained(nn.BatchNorm1d(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(torch.relu(x).t() @ x)

    graph = folded(Both(), (4, 4))
    assert [refusal.reason.name for refusal in graph.refusals] == ["NOT_LINEAR"]
    assert error_in_float64(graph, (4, 4)) <= BOUND
