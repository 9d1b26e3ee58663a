"""A parameter with two names is averaged once, under one of them; the other name must not keep the values of the other copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from exporter.artifacts import TensorSpec
from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.tensors import read_tensor
from exporter.weights import bake

AVERAGE, RAW = 2.0, 1.0


class Tied(nn.Module):
    """An embedding and a head that are one parameter."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(3, 2), nn.LayerNorm(2), nn.Linear(2, 3, bias=False)
        self.head.weight = self.embed.weight
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(value)


def averages() -> dict[str, torch.Tensor]:
    """Return what a trainer averages: every parameter once."""
    return {name: parameter.detach().clone() for name, parameter in Tied(AVERAGE).named_parameters()}


def mmcv() -> dict[str, object]:
    """Return what mmcv's hook saves: the average in the model, the raw weights in buffers, one for each parameter."""
    buffers = {f"ema_{name.replace('.', '_')}": torch.full_like(tensor, RAW) for name, tensor in averages().items()}
    return {"meta": {}, "state_dict": {**Tied(AVERAGE).state_dict(), **buffers}}


def composer() -> dict[str, object]:
    """Return composer's state while the average is in the model."""
    entry = {"ema_model": {"named_parameters_dict": {name: torch.full_like(tensor, RAW) for name, tensor in averages().items()}}}
    return {"state": {"model": Tied(AVERAGE).state_dict(), "algorithms": [("EMA", {**entry, "ema_weights_active": True})]}, "rng": []}


def lit_ema() -> dict[str, object]:
    """Return the module's state with LitEma's buffers."""
    counters = {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(500, dtype=torch.int32)}
    mangled = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in averages().items()}
    return {"state_dict": {**{f"model.{name}": tensor for name, tensor in Tied(RAW).state_dict().items()}, **mangled, **counters}}


MADE: dict[str, Callable[[], dict[str, object]]] = {
    "named parameters": lambda: {"model": Tied(RAW).state_dict(), "ema": averages()},
    "a list": lambda: {"model": Tied(RAW).state_dict(), "ema": {"decay": 0.9, "num_updates": None, "shadow_params": list(averages().values())}},
    "lit-ema": lit_ema,
    "mmcv": mmcv,
    "composer": composer,
}


@pytest.mark.parametrize("layout", MADE)
@pytest.mark.parametrize(("choice", "value"), [("ema", AVERAGE), ("raw", RAW)])
def test_both_names_have_the_values_of_one_copy(layout: str, choice: str, value: float, save: Callable[..., Path], tmp_path: Path) -> None:
    """Whichever copy is chosen, every tensor of the model is of that copy."""
    order = tuple(TensorSpec(name, tuple(parameter.shape), "float32") for name, parameter in Tied(RAW).named_parameters())
    bake(open_checkpoint(save(MADE[layout]())), BakeConfig(choice=choice), tmp_path / "out.safetensors", parameter_order=order)
    baked = open_checkpoint(tmp_path / "out.safetensors").root
    assert {name.removeprefix("model.") for name in baked} == set(Tied(RAW).state_dict())
    for name, ref in baked.items():
        assert np.all(read_tensor(ref) == value), name
