"""Weights are computed when they are rounded, and not kept in float64."""

from __future__ import annotations

import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import torch
from networks import Sequence, error_in_float64, folded, trained
from torch import nn

from exporter.artifacts import Provenance
from exporter.config import FoldConfig, InputConfig
from exporter.graph import fold, trace
from exporter.graph.abstract import Linear
from exporter.graph.algebra import rounded_once, scaled_inputs, scaled_outputs
from exporter.graph.rewrites.late_weight import LateWeight, rounded
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


ROLES = {
    "dense": (Linear("x", "w", None, weight_axis=0, output_axis=1), (300, 20, 3, 3), 300, 20),
    "grouped": (Linear("x", "w", None, weight_axis=0, output_axis=1, groups=4), (48, 6, 13, 13), 48, 24),
    "depthwise": (Linear("x", "w", None, weight_axis=0, output_axis=1, groups=9), (9, 1, 5, 5), 9, 9),
    "transposed": (Linear("x", "w", None, weight_axis=1, output_axis=1, groups=3, is_transposed=True), (12, 7, 25, 25), 21, 12),
    "matrix": (Linear("x", "w", None, weight_axis=1, output_axis=-1, weight_input_axis=0, input_axis=-1), (700, 90), 90, 700),
    "one row": (Linear("x", "w", None, weight_axis=0, output_axis=1), (1, 40000), 1, 40000),
}


@pytest.mark.parametrize("kept", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ROLES)
def test_block_by_block_is_what_is_rounded_at_once(kind, kept):
    """Whatever dtype a weight is kept in and rounded to, the bits are those of scaling all of it in float64 and rounding once."""
    role, shape, outputs, inputs = ROLES[kind]
    generator = np.random.default_rng(len(kind))
    weight = generator.standard_normal(shape).astype({"bfloat16": ml_dtypes.bfloat16}.get(kept, kept))
    weight.reshape(-1)[:3] = (np.nan, np.inf, -0.0)
    s, t = generator.standard_normal(outputs), generator.standard_normal(inputs) * 1e-30
    late = LinearNumbers(LateWeight(lambda: weight)).behind(role, s, s, with_bias=True).ahead(role, t)
    keywords = {"groups": role.groups, "is_transposed": role.is_transposed}
    behind = scaled_outputs(weight.astype(np.float64), s, axis=role.weight_axis, **keywords)
    exact = scaled_inputs(behind, t, axis=role.weight_input_axis, **keywords)
    assert np.array_equal(late.weight, exact, equal_nan=True)
    assert late.given.shape == shape
    for dtype in ("float64", "float32", "float16", "bfloat16"):
        got, expected = rounded(late.given, dtype), rounded_once(exact, dtype)
        assert got.dtype == expected.dtype
        assert got.tobytes() == expected.tobytes()


def test_what_is_rounded_is_its_own():
    """A weight that nothing scales is rounded into an array of its own: the network's is not handed out."""
    weight = np.ones((3, 4))
    assert not np.shares_memory(rounded(LateWeight(lambda: weight), "float64"), weight)


@pytest.mark.parametrize("kept", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_bound_of_a_weight_as_it_is_kept(kept):
    """The bound is the largest magnitude, and NaN wherever one of the numbers is."""
    numbers = np.array([[0.5, -3.0], [2.0, 1.0]]).astype(kept)
    assert LateWeight(lambda: numbers).bound == 3.0
    numbers[1, 0] = np.nan
    assert math.isnan(LateWeight(lambda: numbers).bound)
    assert LateWeight(lambda: np.zeros((0, 3), kept)).bound == 0.0
