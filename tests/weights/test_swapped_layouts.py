"""Layouts whose labels mislead: the copy called average is raw, and each test fails if the label is believed."""

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

AVERAGE, RAW, START = 0.5, 2.0, 9.0
"""The value that every floating element of a copy has."""


def copy(value: float, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return one copy of a small network: a convolution, BatchNorm's statistics, and a counter that counts differently in each."""
    tensors = {"conv.weight": torch.full((2, 3), value), "bn.weight": torch.full((2,), value)}
    tensors |= {"bn.running_mean": torch.full((2,), value), "bn.num_batches_tracked": torch.tensor(int(value * 10))}
    return {prefix + name: tensor for name, tensor in tensors.items()}


def mmcv_state() -> dict[str, torch.Tensor]:
    """Return what EMAHook saves: parameters twice, buffers once."""
    return {
        "conv.weight": torch.full((2, 3), AVERAGE),
        "bn.weight": torch.full((2,), AVERAGE),
        "bn.running_mean": torch.full((2,), RAW),
        "bn.num_batches_tracked": torch.tensor(20),
        "ema_conv_weight": torch.full((2, 3), RAW),
        "ema_bn_weight": torch.full((2,), RAW),
    }


def composer(value: float, *, active: bool, inner: float) -> dict[str, object]:
    """Return composer's state: the model, and the other copy in the entry of the algorithm."""
    other = copy(inner, "module.")
    buffers = {name: other.pop(name) for name in list(other) if "running" in name or "tracked" in name}
    entry = {"ema_model": {"named_parameters_dict": other, "named_buffers_dict": buffers}, "ema_weights_active": active}
    return {"state": {"model": copy(value, "module."), "algorithms": [("LabelSmoothing", {}), ("EMA", entry)]}, "rng": []}


MMENGINE_RAW = {"steps": torch.tensor(300), **copy(RAW, "module.")}
SWAPPED: dict[str, tuple[dict[str, object], str, int | None]] = {
    "lightning": (
        {"state_dict": copy(AVERAGE), "current_model_state": copy(RAW), "averaging_state": {"n_averaged": torch.tensor(7)}},
        "state_dict",
        7,
    ),
    "mmengine": (
        {"meta": {"mmengine_version": "0.10.7"}, "message_hub": {}, "state_dict": copy(AVERAGE), "ema_state_dict": MMENGINE_RAW},
        "state_dict",
        300,
    ),
    "mmcv": ({"meta": {"epoch": 1}, "state_dict": mmcv_state()}, "state_dict", None),
    "composer": (composer(AVERAGE, active=True, inner=RAW), "model", None),
}


@pytest.mark.parametrize("layout", SWAPPED)
def test_the_plain_copy_is_the_average(layout: str, read: Read, baked: Bake) -> None:
    """The average is baked from the plainly named copy and raw from the one with the label, each with all names of the model."""
    content, name, updates = SWAPPED[layout]
    reading = read(content)
    (candidate,) = reading.candidates
    assert (reading.layout, candidate.name, candidate.updates) == (layout, name, updates)
    weights, averaged = baked(content)
    assert weights.summary.drift_total > 0
    _, raw = baked(content, choice="raw")
    assert set(averaged) == set(raw) == set(copy(0))
    for parameter in ("conv.weight", "bn.weight"):
        assert np.all(averaged[parameter] == AVERAGE), "the label was believed"
        assert np.all(raw[parameter] == RAW), "the label was believed"
    assert averaged["bn.num_batches_tracked"] == 20
    assert np.all(averaged["bn.running_mean"] == (RAW if layout == "mmcv" else AVERAGE))


def test_composer_without_the_swap(read: Read, baked: Bake) -> None:
    """Where the flag is off, ``ema_model`` is the average; a frozen parameter that it lacks comes from the model."""
    content = composer(RAW, active=False, inner=AVERAGE)
    content["state"]["model"]["module.frozen.weight"] = torch.ones(4)
    assert [candidate.name for candidate in read(content).candidates] == ["ema_model"]
    _, averaged = baked(content)
    assert np.all(averaged["conv.weight"] == AVERAGE)
    assert averaged["frozen.weight"].shape == (4,)
    assert np.all(baked(content, choice="raw")[1]["conv.weight"] == RAW)


def test_lightning_after_fit_has_no_raw_weights(read: Read, baked: Bake) -> None:
    """After fit() both copies are the average: it is baked, and the copy called current is not passed off as raw."""
    content = {"state_dict": copy(AVERAGE), "current_model_state": copy(AVERAGE), "averaging_state": {"n_averaged": torch.tensor(7)}}
    reading = read(content)
    assert reading.raw_at is None
    assert "both copies are the average" in reading.remarks[0]
    assert np.all(baked(content)[1]["conv.weight"] == AVERAGE)
    with pytest.raises(LayoutError, match="has none") as refused:
        baked(content, choice="raw")
    assert refused.value.code == "E201"


def test_lightning_before_the_first_average_keeps_raw(read: Read) -> None:
    """One update copies: the copies are equal, and the raw weights are raw."""
    content = {"state_dict": copy(RAW), "current_model_state": copy(RAW), "averaging_state": {"n_averaged": torch.tensor(1)}}
    assert read(content).raw_at == "current_model_state"


def test_lightning_swa_in_the_middle_of_training(read: Read, baked: Bake) -> None:
    """Stochastic weight averaging keeps its average in the callback; here ``state_dict`` is raw, and stale statistics are said."""
    state = {"n_averaged": 3, "average_model_state": copy(AVERAGE)}
    content = {"state_dict": copy(RAW), "callbacks": {"ModelCheckpoint": {}, "StochasticWeightAveraging": state}}
    (candidate,) = read(content).candidates
    assert (candidate.name, candidate.updates, candidate.at) == ("swa", 3, "callbacks/StochasticWeightAveraging/average_model_state")
    assert "statistics" in candidate.remark
    assert candidate.schedule == "mean of snapshots"
    assert candidate.state != "cold"
    assert np.all(baked(content)[1]["conv.weight"] == AVERAGE)
    assert np.all(baked(content, choice="raw")[1]["conv.weight"] == RAW)


@pytest.mark.parametrize("state", [{"n_averaged": 0, "average_model_state": None}, {}])
def test_lightning_swa_that_has_not_begun(state: dict[str, object], read: Read) -> None:
    """Before averaging begins there is no average, and the weights are raw."""
    reading = read({"state_dict": copy(RAW), "callbacks": {"StochasticWeightAveraging": state}})
    assert (reading.candidates, reading.raw_at) == ((), "state_dict")


def test_half_a_signature_is_not_enough(read: Read) -> None:
    """The label alone, without the other keys of its library, is what a home-made loop writes: believed, as ever."""
    reading = read({"state_dict": copy(RAW), "ema_state_dict": copy(AVERAGE)})
    assert (reading.layout, [c.name for c in reading.candidates]) == ("dict", ["ema_state_dict"])
    reading = read({"meta": {}, "state_dict": {**copy(RAW), "ema_attention.weight": torch.ones(2), "ema_gate": torch.ones(1)}})
    assert (reading.candidates, reading.raw_num_tensors) == ((), 6)
    assert read({"state": {"model": copy(RAW), "algorithms": [("EMA", {"ema_model": None})]}}).candidates == ()


def test_mmcv_names_that_meet_are_refused(read: Read) -> None:
    """``a.b`` and ``a_b`` share one buffer: one of the raw weights is lost, and which is not guessed."""
    state = {"a.b": torch.ones(2), "a_b": torch.zeros(2), "ema_a_b": torch.ones(2)}
    with pytest.raises(LayoutError, match="both written as 'ema_a_b'") as refused:
        read({"meta": {}, "state_dict": state})
    assert refused.value.code == "E221"
    assert refused.value.facts["found"] == "a.b and a_b"


def test_mmcv_model_with_a_layer_called_ema(read: Read, baked: Bake) -> None:
    """A layer of the model that is itself called ema has a twin of its own and keeps its name."""
    state = {**mmcv_state(), "ema_gate": torch.full((1,), AVERAGE), "ema_ema_gate": torch.full((1,), RAW)}
    assert read({"meta": {}, "state_dict": state}).candidates[0].num_tensors == 3
    _, averaged = baked({"meta": {}, "state_dict": state})
    assert averaged["ema_gate"] == AVERAGE
    assert baked({"meta": {}, "state_dict": state}, choice="raw")[1]["ema_gate"] == RAW
