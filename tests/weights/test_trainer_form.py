"""The form in which a trainer's own loader reads weights back."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from exporter import __version__
from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.weights import TrainerForm, bake, save_torch, trainer_form
from exporter.weights.layouts import LAYOUTS
from tests.weights.conftest import Save, make_model

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]

LIGHTNING = "pytorch-lightning_version"
FORMS = {
    "timm": "state_dict",
    "torchvision": "model",
    "lightning": "state_dict",
    "mmengine": "state_dict",
    "mmcv": "state_dict",
    "yolox": "model",
    "lit-ema": "state_dict",
    "k-diffusion": "model_ema",
    "dit": "ema",
    "rt-detr": "model",
    "fairseq": "model",
}


@pytest.mark.parametrize("layout", [*(layout.name for layout in LAYOUTS), "state dict", "unknown"])
def test_every_layout_has_its_key(layout: str, save: Save) -> None:
    """The key is that of the trainer's loader; where there is none the file is the state dict, under the names that were baked."""
    opened = open_checkpoint(save({"state_dict": {"weight": torch.ones(2)}, LIGHTNING: "2.6.6"}))
    form = trainer_form(opened, layout, stripped="net.")
    assert form.under == FORMS.get(layout, "")
    assert form.prefix == ("net." if layout in FORMS else "")
    assert dict(form.beside) == ({LIGHTNING: "2.6.6"} if layout == "lightning" else {})


def test_key_prefix_and_text_are_in_the_file(save: Save, tmp_path: Path) -> None:
    """torch reads names with the prefix put back, and the text beside the state dict."""
    weights = bake(open_checkpoint(save({"state_dict": make_model(0).state_dict()})), BakeConfig(choice="raw"), tmp_path / "w.safetensors")
    save_torch(weights, tmp_path / "out.pt", form=TrainerForm("state_dict", "net.", {LIGHTNING: "2.6.6"}))
    loaded = torch.load(tmp_path / "out.pt", weights_only=True)
    assert set(loaded) == {LIGHTNING, "state_dict"}
    assert loaded[LIGHTNING] == "2.6.6"
    wanted = {f"net.{name}": tensor for name, tensor in make_model(0).state_dict().items()}
    assert loaded["state_dict"].keys() == wanted.keys()
    assert all(torch.equal(loaded["state_dict"][name], tensor) for name, tensor in wanted.items())


def timm_checkpoint() -> Mapping[str, object]:
    """Return a file as timm writes it."""
    return {"state_dict": make_model(0).state_dict(), "state_dict_ema": make_model(1).state_dict(), "arch": "x", "version": 2}


def test_no_second_file_outside_a_project(save: Save, tmp_path: Path, run_cli: RunCli) -> None:
    """Outside a project the torch file is the only one, also where writing it is refused; --json says that nothing else was kept."""
    save(timm_checkpoint())
    done = run_cli("bake-ema", "made.pt", "-o", "out.pt", "--under", "auto", "--json")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"made.pt", "out.pt"}
    result = json.loads(done.stdout)
    assert (result["path"], result["torch"]) == (None, "out.pt")
    assert set(torch.load(tmp_path / "out.pt", weights_only=True)) == {"state_dict"}
    refused = run_cli("bake-ema", "made.pt", "-o", "made.pt")
    assert refused.returncode == 4
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"made.pt", "out.pt"}


def test_in_a_project_the_artefact_of_the_chain_is_kept(digits: Path, run_cli: RunCli) -> None:
    """With an exporter.toml the safetensors file stays in the work folder, up to date for the next step."""
    done = run_cli("bake-ema", "-o", "out.pt", "--json", cwd=digits)
    assert done.returncode == 0, done.stderr
    assert (digits / json.loads(done.stdout)["path"]).is_file()
    assert (digits / "out.pt").is_file()


@pytest.mark.parametrize("bn_stats", ["auto", "raw"])
def test_provenance_is_in_both_files(save: Save, tmp_path: Path, bn_stats: str) -> None:
    """Source digest, layout, average, schedule, statistics and version stand in the metadata of the one and in exporter.json of the other."""
    path = save({**timm_checkpoint(), "args": {"model_ema_decay": 0.9}})
    weights = bake(open_checkpoint(path), BakeConfig(bn_stats=bn_stats), tmp_path / "w.safetensors")
    save_torch(weights, tmp_path / "out.pt")
    metadata = {key.removeprefix("exporter."): value for key, value in open_checkpoint(weights.path).metadata.items() if key.startswith("exporter.")}
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        beside = json.loads(archive.read("archive/exporter.json"))
    assert metadata == beside == dict(weights.provenance.lineage)
    wanted = {
        "checkpoint": "made.pt",
        "checkpoint_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "layout": "timm",
        "weights": "ema:state_dict_ema",
        "ema_decay": "0.9",
        "ema_updates": "unknown",
        "exporter": __version__,
        "bn_stats": "averaged" if bn_stats == "auto" else "raw",
    }
    assert wanted.items() <= beside.items()
    assert "0.9" in beside["ema_schedule"]


def test_tied_and_shared_tensors_are_written_apart(save: Save, tmp_path: Path) -> None:
    """A tied embedding stands under both names with the average's values; an average that shares storage with the raw weights keeps them."""
    tied = torch.rand(5, 3)
    raw = {"embed.weight": tied, "head.weight": tied, "norm.running_mean": torch.rand(3)}
    average = torch.rand(5, 3)
    ema = {"embed.weight": average, "head.weight": average, "norm.running_mean": raw["norm.running_mean"]}  # as ignite copies buffers
    weights = bake(open_checkpoint(save({"model": raw, "ema_model": ema})), BakeConfig(), tmp_path / "w.safetensors")
    save_torch(weights, tmp_path / "out.pt")
    for loaded in (load_file(weights.path), torch.load(tmp_path / "out.pt", weights_only=True)):
        assert loaded.keys() == ema.keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in ema.items())
        loaded["embed.weight"].zero_()
        assert torch.equal(loaded["head.weight"], average)
