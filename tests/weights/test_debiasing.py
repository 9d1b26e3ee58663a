"""Averages that began with zeros are divided by what the zeros leave, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from exporter.artifacts import LayoutReading
from exporter.errors import LayoutError

Read = Callable[..., LayoutReading]
Bake = Callable[..., Any]


def accumulated(steps: int, decay: float) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    """Return raw weights, the accumulator from zero in float32, and the mean of the weights in float64."""
    random = torch.Generator().manual_seed(5)
    sums, exact, total = torch.zeros(40), torch.zeros(40, dtype=torch.float64), 0.0
    weights = torch.zeros(40)
    for _ in range(steps):
        weights = torch.randn(40, generator=random) + 3
        sums = decay * sums + (1 - decay) * weights
        exact = decay * exact + (1 - decay) * weights.double()
        total = decay * total + (1 - decay)
    return {"weight": weights, "steps": torch.tensor(7)}, {"weight": sums}, exact / total


@pytest.mark.parametrize("form", ["optax", "flags"])
def test_is_divided_by_what_the_zeros_leave(form: str, read: Read, baked: Bake) -> None:
    """Both optax's state and a dict with debias are read as accumulator / (1 - decay ** updates), rounded once; the counter is raw."""
    raw, sums, exact = accumulated(20, 0.99)
    optax = {"params": raw, "ema_state": {"count": torch.tensor(20, dtype=torch.int32), "ema": sums}}
    flags = {"model": raw, "ema": {"shadow": sums, "debias": True, "decay": 0.99, "num_updates": 20}}
    content, decay = (optax, 0.99) if form == "optax" else (flags, None)
    weights, arrays = baked(content, decay=decay)
    np.testing.assert_array_equal(arrays["weight"], (sums["weight"].double() / (1 - 0.99**20)).float().numpy())
    np.testing.assert_allclose(arrays["weight"], exact.numpy(), rtol=1e-6)
    assert arrays["steps"] == 7
    candidate = weights.summary.candidate
    assert (candidate.updates, candidate.decay, candidate.state, candidate.initial_share) == (20, 0.99, "warming", 0.0)
    ages = 0.99 ** np.arange(20)
    assert candidate.window == pytest.approx(np.sum(ages * np.arange(1, 21)) / np.sum(ages))
    assert "divided by 0.182093" in read(content, decay=decay).candidates[0].remark
    assert weights.summary.remarks == ()


def test_refuses_what_it_cannot_divide(read: Read, baked: Bake) -> None:
    """Without the decay --decay is named; without a count the raw weights are; with no update there is nothing to divide."""
    raw, sums, _ = accumulated(5, 0.9)
    content = {"params": raw, "ema_state": {"count": 5, "ema": sums}}
    assert (read(content).candidates[0].state, "--decay" in read(content).candidates[0].remark) == ("unknown", True)
    with pytest.raises(LayoutError, match=r"(?s)E245.*--decay"):
        baked(content)
    with pytest.raises(LayoutError, match=r"(?s)E245.*--weights raw"):
        baked({"model": raw, "ema": {"shadow": sums, "zero_debias": True, "decay": 0.9}})
    with pytest.raises(LayoutError, match="E246"):
        baked({"params": raw, "ema_state": {"count": 0, "ema": sums}}, decay=0.9, allow_cold=True)


def test_debias_that_is_off_changes_nothing(baked: Bake) -> None:
    """``debias: False`` is an average as any other."""
    raw, sums, _ = accumulated(5, 0.9)
    _, arrays = baked({"model": raw, "ema": {"shadow": sums, "debias": False, "decay": 0.9}})
    np.testing.assert_array_equal(arrays["weight"], sums["weight"].numpy())


def test_an_average_near_zero_is_said(baked: Bake) -> None:
    """Where nothing in the file tells that it began with zeros, its values do: a remark, not a correction."""
    raw, sums, _ = accumulated(5, 0.99)
    weights, arrays = baked({"model": raw, "ema": sums})
    np.testing.assert_array_equal(arrays["weight"], sums["weight"].numpy())
    (remark,) = weights.summary.remarks
    assert remark.startswith("nearly zero: its norm is 4.")
    assert baked({"model": raw, "ema": raw})[0].summary.remarks == ()
