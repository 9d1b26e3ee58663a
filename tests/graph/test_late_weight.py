"""Weights are computed when they are rounded, and not kept in float64."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import torch
from networks import Sequence, error_in_float64, folded, trained
from torch import nn

from exporter.artifacts import Provenance
from exporter.config import FoldConfig, InputConfig
from exporter.graph import fold, trace
from exporter.graph.abstract import Linear
from exporter.graph.rewrites.late_weight import LateWeight
from exporter.graph.rewrites.linear_numbers import LinearNumbers


def test_a_fold_takes_little_more_memory_than_its_result():
    """While eight equal convolutions are folded, never more than one of them is there in float64."""
    layers = {
        f"{kind}{n}": nn.Conv2d(96, 96, 3) if kind == "conv" else trained(nn.BatchNorm2d(96), seed=n) for n in range(8) for kind in ("conv", "bn")
    }
    network = Sequence(**layers).eval()
    traced = trace(network, (InputConfig(name="x", shape=(2, 96, 20, 20)),))
    weights = sum(4 * tensor.numel() for tensor in network.state_dict().values())
    tracemalloc.start()
    try:
        graph = fold(traced, FoldConfig(), provenance=Provenance("graph"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(graph.folded) == 8
    assert peak <= 1.75 * weights


def test_what_is_scaled_late_is_what_is_scaled_at_once():
    """The same steps give the same bits, whether they are taken at once or when the weight is read."""
    generator = np.random.default_rng(0)
    role = Linear("x", "w", None, weight_axis=0, output_axis=1)
    weight, s, t = generator.standard_normal((6, 4, 3, 3)), generator.standard_normal(6), generator.standard_normal(4)
    at_once, late = (LinearNumbers(given).behind(role, s, s, with_bias=True).ahead(role, t) for given in (weight, LateWeight(lambda: weight)))
    assert isinstance(late.given, LateWeight)
    assert np.array_equal(at_once.weight, late.weight)
    assert np.abs(late.weight).max() <= late.given.bound


def test_a_weight_that_is_not_a_number_has_no_bound():
    """NaN in a weight or in a factor is never within a bound, so its numbers are looked at."""
    weight, bad = np.ones((2, 3)), np.array([1.0, math.nan])
    late = LinearNumbers(LateWeight(lambda: weight))
    role = Linear("x", "w", None, weight_axis=0, output_axis=1)
    assert late.may_exceed(2.0) == ()
    assert len(late.behind(role, bad, bad, with_bias=False).may_exceed(2.0)) == 1
    assert len(LinearNumbers(LateWeight(lambda: bad)).may_exceed(2.0)) == 1


def test_a_bound_that_is_too_large_refuses_nothing():
    """The largest weight and the largest factor meet in different channels: their product would overflow, and no number does."""
    conv, norm = nn.Conv2d(3, 2, 3, bias=False), trained(nn.BatchNorm2d(2))
    with torch.no_grad():
        conv.weight[0], conv.weight[1] = 1000.0, 0.5
        norm.weight.copy_(torch.tensor([1.0, 1000.0]))
        norm.running_var.fill_(1.0)
    graph = folded(Sequence(conv=conv, bn=norm).to(torch.float16), dtype="float16")
    assert [fold.batch_norm for fold in graph.folded] == ["bn"]
    assert error_in_float64(graph) <= 1e-10
