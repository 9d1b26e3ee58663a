"""Keras' own files: averages among the optimizer's numbered variables, and the cases that a file cannot decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import LayoutError
from exporter.tensors import read_tensor
from exporter.weights import bake, read_layout

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

Arrays = dict[str, np.ndarray]


@pytest.fixture
def keras(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Keras on torch."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras", reason="keras is not installed")


@pytest.fixture(params=["SGD", "Adam"])
def trained(keras: Any, request: pytest.FixtureRequest) -> Any:
    """A small network after three steps with ``use_ema``; two layers have variables of the same shapes."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(4, name="z"), keras.layers.BatchNormalization(name="bn"), keras.layers.Dense(4, name="a"), keras.layers.Dense(2)]
    model = keras.Sequential([keras.layers.Input((4,)), *layers], name="sequential")
    options = {"momentum": 0.9} if request.param == "SGD" else {}
    model.compile(optimizer=getattr(keras.optimizers, request.param)(0.1, use_ema=True, ema_momentum=0.9, **options), loss="mse")
    random = np.random.default_rng(0)
    for _ in range(3):
        model.train_on_batch(random.random((8, 4), "f4"), random.random((8, 2), "f4"))
    return model


def value(variable: Any) -> np.ndarray:
    """Return a variable's values."""
    return np.array(variable.value.detach().cpu().numpy())


def wanted(model: Any) -> Arrays:
    """Return the average by Keras' own objects: trainable variables from the optimizer, the rest as they are."""
    averages = dict(zip((v.path for v in model.trainable_variables), model.optimizer._model_variables_moving_average, strict=True))
    return {v.path.partition("/")[2]: value(averages.get(v.path, v)) for v in model.variables if "seed" not in v.path}


def baked(path: Path, output: Path, **settings: object) -> Arrays:
    """Bake and return the arrays, without the model's name in front."""
    weights = bake(open_checkpoint(path), BakeConfig(**settings), output)
    return {name.removeprefix("sequential/"): read_tensor(ref) for name, ref in open_checkpoint(weights.path).root.items()}


def assert_same(found: Arrays, expected: Arrays) -> None:
    """Compare bit for bit."""
    assert set(found) == set(expected)
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_mid_training(name: str, trained: Any, tmp_path: Path) -> None:
    """The averages have the layers' own names; they are taken by name alone, since SwapEMAWeights may have exchanged them."""
    trained.save(tmp_path / name)
    checkpoint = open_checkpoint(tmp_path / name)
    (candidate,) = read_layout(checkpoint).candidates
    assert (candidate.name, candidate.updates, candidate.decay, candidate.schedule) == ("optimizer", 3, 0.9, "0.9, first update copies")
    with pytest.raises(LayoutError, match="taken only by name") as refused:
        bake(checkpoint, BakeConfig(), tmp_path / "out.safetensors")
    assert "SwapEMAWeights" in str(refused.value)
    found = baked(tmp_path / name, tmp_path / "out.safetensors", ema="optimizer", allow_cold=True)
    assert_same(found, wanted(trained))
    assert not np.array_equal(found["z/kernel"], value(trained.layers[0].kernel))
    raw = baked(tmp_path / name, tmp_path / "raw.safetensors", choice="raw")
    assert_same(raw, {v.path.partition("/")[2]: value(v) for v in trained.variables})


def test_swapped_copies(keras: Any, trained: Any, tmp_path: Path) -> None:
    """After SwapEMAWeights the plain weights are the average and the optimizer's the raw ones: never taken without being named."""
    expected = wanted(trained)
    callback = keras.callbacks.SwapEMAWeights()
    callback.set_model(trained)
    callback._swap_variables()
    trained.save(tmp_path / "swapped.keras")
    with pytest.raises(LayoutError, match="taken only by name"):
        bake(open_checkpoint(tmp_path / "swapped.keras"), BakeConfig(), tmp_path / "out.safetensors")
    assert_same(baked(tmp_path / "swapped.keras", tmp_path / "out.safetensors", choice="raw"), expected)


def test_weights_alone(trained: Any, tmp_path: Path) -> None:
    """Without a configuration averages cannot be told from momentum: no candidate, and the message says what is needed."""
    trained.save_weights(tmp_path / "model.weights.h5")
    checkpoint = open_checkpoint(tmp_path / "model.weights.h5")
    assert read_layout(checkpoint).candidates == ()
    with pytest.raises(LayoutError, match=r"config\.json") as refused:
        bake(checkpoint, BakeConfig(), tmp_path / "out.safetensors")
    assert refused.value.code == "E204"
    raw = baked(tmp_path / "model.weights.h5", tmp_path / "raw.safetensors", choice="raw")
    assert raw["z/vars/0"].tobytes() == value(trained.layers[0].kernel).tobytes()


def test_after_fit(trained: Any, tmp_path: Path) -> None:
    """After fit the weights are the average and nothing is beside them: said, and taken as they are."""
    expected = wanted(trained)
    trained.optimizer.finalize_variable_values(trained.trainable_variables)
    trained.save(tmp_path / "done.keras")
    reading = read_layout(open_checkpoint(tmp_path / "done.keras"))
    raw = baked(tmp_path / "done.keras", tmp_path / "raw.safetensors", choice="raw")
    assert_same(raw, expected)
    assert reading.candidates or "fit()" in reading.raw_remark
