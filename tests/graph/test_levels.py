"""How much is folded is chosen by the level."""

from __future__ import annotations

from networks import Sequence, error_in_float64, folded, trained
from torch import nn

BOUND = 1e-10


def network() -> nn.Module:
    """Return a network with a BatchNorm that goes back and one that goes ahead."""
    return Sequence(a=nn.Conv2d(3, 4, 3), back=trained(nn.BatchNorm2d(4)), relu=nn.ReLU(), ahead=trained(nn.BatchNorm2d(4)), b=nn.Conv2d(4, 2, 1))


def test_conservative_folds_back_and_nothing_else():
    """At ``conservative`` a BatchNorm goes into what makes its data, and one that could go ahead is kept by name."""
    graph = folded(network(), level="conservative")
    assert [fold.batch_norm for fold in graph.folded] == ["back"]
    assert [refusal.batch_norm for refusal in graph.refusals] == ["ahead"]
    assert error_in_float64(graph, level="conservative") <= BOUND


def test_default_folds_ahead_too():
    """At ``default`` both go."""
    graph = folded(network())
    assert [fold.batch_norm for fold in graph.folded] == ["back", "ahead"]
    assert error_in_float64(graph) <= BOUND
