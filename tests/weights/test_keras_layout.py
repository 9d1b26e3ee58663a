"""Keras' averages among numbered variables: found where the configuration and every shape say so, and nowhere else."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from exporter.artifacts import LayoutReading
from exporter.checkpoint import open_checkpoint
from exporter.errors import LayoutError
from exporter.weights import read_layout

LAYERS: dict[str, tuple[str, list[tuple[int, ...]], int]] = {
    "z": ("Dense", [(3, 3), (3,)], 2),
    "norm": ("BatchNormalization", [(3,), (3,), (3,), (3,)], 2),
    "a": ("Dense", [(3, 3), (3,)], 2),
}
"""Name -> class, shapes of its variables, and how many of them are trained; all weights of one shape look alike."""


def config(**changes: Any) -> dict[str, Any]:
    """Return the part of ``config.json`` that decides; ``changes`` are made to the optimizer's settings."""
    settings = {"Dense": {"use_bias": True}, "BatchNormalization": {"scale": True, "center": True}}
    layers = [{"class_name": kind, "config": {"name": name, "trainable": True, **settings[kind]}} for name, (kind, *_) in LAYERS.items()]
    return {"config": {"layers": layers}, "compile_config": {"optimizer": {"config": {"use_ema": True, "ema_momentum": 0.99, **changes}}}}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a ``.keras`` file as Keras lays it out: value i of the optimizer is filled with i, those of the layers with 100 and on."""

    def written(described: dict[str, Any], *, slots: int = 1, drop: int = 0) -> Path:
        shapes = [shape for _, all_shapes, trained in LAYERS.values() for shape in all_shapes[:trained]]
        with h5py.File(tmp_path / "inner.h5", "w") as file:
            for number, (name, (kind, sizes, _)) in enumerate(LAYERS.items()):
                group = file.create_group(f"layers/{kind.lower()}_{number}/vars")
                group.attrs["name"] = name
                for i, shape in enumerate(sizes):
                    group[str(i)] = np.full(shape, 100 + 10 * number + i, "f4")
            variables = file.create_group("optimizer/vars")
            variables["0"], variables["1"] = np.array(500, "i4"), np.array(0.1, "f4")
            for i, shape in enumerate((shapes * (1 + slots))[: None if not drop else -drop], 2):
                variables[str(i)] = np.full(shape, i, "f4")
        with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
            archive.writestr("config.json", json.dumps(described))
            archive.write(tmp_path / "inner.h5", "model.weights.h5")
        return tmp_path / "model.keras"

    return written


def read(path: Path) -> LayoutReading:
    """Open and read the layout."""
    return read_layout(open_checkpoint(path))


def test_averages_follow_the_order_of_the_configuration(
    write: Callable[..., Path], baked: Callable[..., tuple[object, dict[str, np.ndarray]]]
) -> None:
    """The k-th average belongs to the k-th trained variable in the order of the layers, not of their groups; statistics come from raw."""
    path = write(config())
    (candidate,) = read(path).candidates
    assert (candidate.name, candidate.updates, candidate.decay, candidate.num_tensors) == ("optimizer", 500, 0.99, 6)
    _, arrays = baked(path, ema="optimizer")
    firsts = {name: float(array.flat[0]) for name, array in arrays.items()}
    averaged = {"z/kernel": 2, "z/bias": 3, "norm/gamma": 4, "norm/beta": 5, "a/kernel": 6, "a/bias": 7}
    assert firsts == {**averaged, "norm/moving_mean": 112, "norm/moving_variance": 113}


def test_an_average_is_taken_only_by_name(write: Callable[..., Path], baked: Callable[..., object]) -> None:
    """SwapEMAWeights leaves no trace, so neither copy is the default."""
    with pytest.raises(LayoutError, match="SwapEMAWeights") as refused:
        baked(write(config()))
    assert refused.value.code == "E225"


def _unknown_class(described: dict[str, Any]) -> None:
    described["config"]["layers"][1]["class_name"] = "MyNormalization"


def _frozen(described: dict[str, Any]) -> None:
    described["config"]["layers"][0]["config"]["trainable"] = False


def _two_layers_swapped(described: dict[str, Any]) -> None:
    described["config"]["layers"][:2] = reversed(described["config"]["layers"][:2])


@pytest.mark.parametrize(
    "change",
    [
        lambda described: described["compile_config"]["optimizer"]["config"].update(use_ema=False),
        lambda described: described.pop("compile_config"),
        lambda described: described["config"].pop("layers"),
        lambda described: described["config"]["layers"].pop(),
        _unknown_class,
        _frozen,
        _two_layers_swapped,
    ],
    ids=["no EMA", "no optimizer", "a subclassed model", "a layer missing", "an unknown class", "another number", "other shapes"],
)
def test_slots_are_not_taken_for_averages(change: Callable[[dict[str, Any]], object], write: Callable[..., Path]) -> None:
    """Where the configuration does not say it, or a class, number or shape does not fit, there is no average; the raw weights are there."""
    described = config()
    change(described)
    reading = read(write(described))
    assert (reading.candidates, reading.raw_num_tensors) == ((), 8)


def test_after_fit_nothing_is_beside_the_weights(write: Callable[..., Path]) -> None:
    """With ``use_ema`` and no variables left, the file is said to be averaged already, perhaps."""
    assert "fit()" in read(write(config(), slots=0, drop=6)).raw_remark


def test_the_names_of_tf_keras(tmp_path: Path, baked: Callable[..., tuple[object, dict[str, np.ndarray]]]) -> None:
    """In tf-keras' ``.h5`` files averages stand under ``average`` beside the momentum, with the layers' own names."""
    described = {"optimizer_config": {"class_name": "SGD", "config": {"use_ema": True, "ema_momentum": 0.9}}}
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.attrs["training_config"] = json.dumps(described)
        for name, number in (("dense/kernel:0", 1), ("bn/gamma:0", 2), ("bn/moving_mean:0", 3)):
            file[f"model_weights/{name.partition('/')[0]}/{name}"] = np.full(3, number, "f4")
            if "moving" not in name:
                file[f"optimizer_weights/SGD/average/{name}"] = np.full(3, 10 + number, "f4")
                file[f"optimizer_weights/SGD/m/{name}"] = np.full(3, 20 + number, "f4")
        file["optimizer_weights/iteration:0"] = np.array(400, "i8")
    (candidate,) = read(tmp_path / "model.h5").candidates
    assert (candidate.updates, candidate.num_tensors) == (400, 2)
    _, arrays = baked(tmp_path / "model.h5", ema="optimizer")
    assert {name: float(array[0]) for name, array in arrays.items()} == {"dense/kernel:0": 11, "bn/gamma:0": 12, "bn/moving_mean:0": 3}
