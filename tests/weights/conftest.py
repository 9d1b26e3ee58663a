"""Small models, checkpoints made of them, and baking with one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from exporter.artifacts import LayoutReading, Weights
from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.tensors import read_tensor
from exporter.weights import bake, read_layout

Save = Callable[[object], Path]
Bake = Callable[..., "tuple[Weights, dict[str, NDArray[np.generic]]]"]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save a value with torch.save and return the path."""

    def save_value(value: object, name: str = "made.pt") -> Path:
        torch.save(value, tmp_path / name)
        return tmp_path / name

    return save_value


@pytest.fixture
def read(save: Save) -> Callable[[object], LayoutReading]:
    """Save a value and read its layout."""
    return lambda value, **options: read_layout(open_checkpoint(save(value)), **options)


@pytest.fixture
def baked(save: Save, tmp_path: Path) -> Bake:
    """Save a value, bake it with settings, and return the artefact and its arrays."""

    def bake_value(value: object, **settings: object) -> tuple[Weights, dict[str, NDArray[np.generic]]]:
        path = value if isinstance(value, Path) else save(value)
        weights = bake(open_checkpoint(path), BakeConfig(**settings), tmp_path / "out" / "baked.safetensors")
        return weights, {name: read_tensor(ref) for name, ref in open_checkpoint(weights.path).root.items()}

    return bake_value


@pytest.fixture
def model() -> nn.Module:
    """A convolution and a BatchNorm that have seen data."""
    return make_model(0)


@pytest.fixture
def other_model() -> nn.Module:
    """The same architecture with other weights: the average beside the raw ones."""
    return make_model(1)


def make_model(seed: int) -> nn.Module:
    """Return a small network with random weights and statistics."""
    random = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=random) + 0.5)
            else:
                tensor.fill_(7 + seed)
            assert name
    return model
