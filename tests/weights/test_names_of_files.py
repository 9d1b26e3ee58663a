"""Averages that only the name of a file or folder tells, and lists that stand in the order of the weights beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from exporter.artifacts import LayoutReading
from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import CheckpointError, LayoutError
from exporter.weights import bake, read_layout

Read = Callable[..., LayoutReading]
Bake = Callable[..., "tuple[object, dict[str, np.ndarray]]"]

NAMED = [
    # name of the file, layout, name of the average, decay, updates, where the raw weights are
    ("ema_0.9999_100000.pt", "guided-diffusion", "ema_0.9999", 0.9999, 100_000, "model100000.pt"),
    ("ema_model_5.pt", "ignite", "ema_model", None, None, "model_5.pt"),
    ("best_ema_model_5_loss=0.1.pt", "ignite", "ema_model", None, None, "best_model_5_loss=0.1.pt"),
    ("net-EMA.ckpt", "nemo", "EMA", None, None, "net.ckpt"),
]


@pytest.mark.parametrize(("name", "layout", "average", "decay", "updates", "raw"), NAMED, ids=[row[0] for row in NAMED])
def test_a_name_is_evidence_and_no_proof(
    name: str,
    layout: str,
    average: str,
    decay: float | None,
    updates: int | None,
    raw: str,
    model: nn.Module,
    save: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """A bare state dict in a file that is named as an average is listed with what the name says, and taken only by name."""
    state = model.state_dict()
    checkpoint = open_checkpoint(save({"state_dict": state} if layout == "nemo" else state, name))
    reading = read_layout(checkpoint)
    (candidate,) = reading.candidates
    assert (reading.layout, candidate.name, candidate.decay, candidate.updates) == (layout, average, decay, updates)
    assert raw in reading.remarks[0]
    with pytest.raises(LayoutError, match="E225"):
        bake(checkpoint, BakeConfig(), tmp_path / "out.safetensors")
    assert bake(checkpoint, BakeConfig(ema=average), tmp_path / "out.safetensors").summary.num_averaged == 5


@pytest.mark.parametrize("name", ["model100000.pt", "ema_0.9999.pt", "schema_0.9_1.pt", "EMA.ckpt", "ema_0.9999_1.safetensors.bak"])
def test_other_names_say_nothing(name: str, model: nn.Module, save: Callable[..., Path]) -> None:
    """A file with another name is what is in it."""
    assert read_layout(open_checkpoint(save(model.state_dict(), name))).candidates == ()


def test_a_cold_average_is_known_by_its_name(model: nn.Module, save: Callable[..., Path], tmp_path: Path) -> None:
    """Rate and step of guided-diffusion's name tell that the average is still mostly the initial weights."""
    checkpoint = open_checkpoint(save(model.state_dict(), "ema_0.9999_005000.pt"))
    with pytest.raises(LayoutError, match="E211"):
        bake(checkpoint, BakeConfig(ema="ema_0.9999"), tmp_path / "out.safetensors")


def nemo(model: nn.Module, items: list[torch.Tensor]) -> dict[str, object]:
    """Return a file of NeMo's first callback."""
    return {"state_dict": model.state_dict(), "callbacks": {"EMA": {"cur_step": 40, "ema_weights": items}}}


def test_a_list_in_the_order_of_the_state_dict(model: nn.Module, other_model: nn.Module, read: Read, baked: Bake) -> None:
    """NeMo's list gets its names from the state dict beside it; counters come from there."""
    content = nemo(model, list(other_model.state_dict().values()))
    reading = read(content)
    assert (reading.layout, reading.candidates[0].updates, reading.needs_parameter_order) == ("nemo", 40, False)
    arrays = baked(content)[1]
    for name, tensor in other_model.state_dict().items():
        wanted = tensor if tensor.is_floating_point() else model.state_dict()[name]
        assert arrays[name].tobytes() == wanted.numpy().tobytes()


@pytest.mark.parametrize("change", [lambda items: items[:-1], lambda items: items[::-1]], ids=["one fewer", "another order"])
def test_a_list_that_does_not_fit_the_state_dict(change: Callable[[list[torch.Tensor]], list[torch.Tensor]], model: nn.Module, read: Read) -> None:
    """Number and shapes must be those of the state dict."""
    with pytest.raises(LayoutError, match="E260"):
        read(nemo(model, change(list(model.state_dict().values()))))


def test_early_files_of_mmengine_are_not_decided(model: nn.Module, other_model: nn.Module, read: Read, baked: Bake) -> None:
    """Where the file does not say which release wrote it, neither copy is taken without being named."""
    raw = {f"module.{name}": tensor for name, tensor in model.state_dict().items()} | {"steps": torch.tensor(300)}
    content = {"meta": {}, "message_hub": {}, "state_dict": other_model.state_dict(), "ema_state_dict": raw}
    assert "not swapped" in read(content).candidates[0].remark
    with pytest.raises(LayoutError, match="E225"):
        baked(content)
    assert baked(content, ema="state_dict")[1]["0.weight"].tobytes() == other_model.state_dict()["0.weight"].numpy().tobytes()
    assert baked(content, choice="raw")[1]["0.weight"].tobytes() == model.state_dict()["0.weight"].numpy().tobytes()


def saved_model(folder: Path, model: nn.Module, **config: object) -> Path:
    """Write a folder as diffusers' save_pretrained does."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", **config}))
    save_file(model.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    return folder


COUNTERS = {
    "decay": 0.9,
    "min_decay": 0.0,
    "optimization_step": 500,
    "update_after_step": 0,
    "use_ema_warmup": False,
    "inv_gamma": 1.0,
    "power": 0.75,
}


def test_the_folder_of_an_average(model: nn.Module, other_model: nn.Module, tmp_path: Path) -> None:
    """The pair of folders is one checkpoint: raw and average; the folder of the average alone has no raw weights."""
    saved_model(tmp_path / "both" / "unet", model)
    saved_model(tmp_path / "both" / "unet_ema", other_model, **COUNTERS)
    reading = read_layout(open_checkpoint(tmp_path / "both"))
    (candidate,) = reading.candidates
    assert (reading.layout, reading.raw_at, candidate.name) == ("diffusers", "unet/state_dict", "unet_ema")
    assert (candidate.updates, candidate.decay, candidate.state) == (500, 0.9, "settled")
    alone = read_layout(open_checkpoint(tmp_path / "both" / "unet_ema"))
    assert (alone.raw_at, [c.name for c in alone.candidates]) == (None, ["ema"])
    assert read_layout(open_checkpoint(tmp_path / "both" / "unet")).candidates == ()


@pytest.mark.parametrize("config", ["{", "[]", "null", '"' + "x" * (1 << 20) + '"', "[" * 100_000])
def test_a_configuration_that_is_none(config: str, model: nn.Module, tmp_path: Path) -> None:
    """What is no table of a sensible size is refused."""
    folder = saved_model(tmp_path / "unet_ema", model)
    (folder / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match="E262"):
        open_checkpoint(folder)


def test_averages_of_several_models(model: nn.Module, tmp_path: Path) -> None:
    """Two pairs in one folder are not one checkpoint: the folder of one has to be named."""
    for name in ("unet", "unet_ema", "vae", "vae_ema"):
        saved_model(tmp_path / "all" / name, model, **COUNTERS)
    with pytest.raises(CheckpointError, match="E261") as refused:
        open_checkpoint(tmp_path / "all")
    assert "unet_ema" in refused.value.help
