"""``inspect`` and ``bake-ema`` on every container: what a person sees, and that the payload of none is run."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

WEIGHTS = {"0.weight": torch.arange(6.0).reshape(2, 3), "0.bias": torch.tensor([0.5, -0.5])}


def module() -> torch.nn.Module:
    """Return a module with these weights."""
    made = torch.nn.Sequential(torch.nn.Linear(3, 2))
    made.load_state_dict(WEIGHTS)
    return made.eval()


def legacy(folder: Path) -> Path:
    """Write a file of torch before 1.6."""
    torch.save(WEIGHTS, folder / "x.pt", _use_new_zipfile_serialization=False)
    return folder / "x.pt"


def plain(folder: Path) -> Path:
    """Write a plain pickle of torch tensors."""
    (folder / "x.pkl").write_bytes(pickle.dumps(WEIGHTS))
    return folder / "x.pkl"


def arrays(folder: Path) -> Path:
    """Write a plain pickle of NumPy arrays."""
    (folder / "x.pkl").write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in WEIGHTS.items()}))
    return folder / "x.pkl"


def shards(folder: Path) -> Path:
    """Write two shards and their index; the folder is what is named."""
    for name, tensor in WEIGHTS.items():
        save_file({name: tensor}, folder / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in WEIGHTS}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def index_of_shards(folder: Path) -> Path:
    """Write the same, and name the index."""
    return shards(folder) / "model.safetensors.index.json"


def program(folder: Path) -> Path:
    """Write an exported program."""
    torch.export.save(torch.export.export(module(), (torch.rand(1, 3),)), folder / "x.pt2")
    return folder / "x.pt2"


def script(folder: Path) -> Path:
    """Write a TorchScript archive."""
    torch.jit.save(torch.jit.script(module()), folder / "x.pt")
    return folder / "x.pt"


CONTAINERS = {
    "torch legacy": legacy,
    "pickle": plain,
    "pickle of arrays": arrays,
    "safetensors in shards": shards,
    "safetensors in shards, by index": index_of_shards,
    "torch.export, its code not run": program,
    "TorchScript, its code not run": script,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for nothing but the checkpoint."""
    (tmp_path / "checkpoint").mkdir()
    return tmp_path / "checkpoint"


def call(arguments: list[str]) -> int:
    """Run the command line and return its exit status."""
    from exporter.cli.app import main

    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("container", CONTAINERS)
def test_inspect_names_the_container_and_the_weights(container: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first line says which container it is; the tree holds the names."""
    path = CONTAINERS[container](folder)
    assert call(["inspect", str(path), "--tree"]) == 0
    shown = capsys.readouterr().out
    assert container.removesuffix(" of arrays").removesuffix(", by index") in shown.splitlines()[0]
    assert all(name in shown for name in WEIGHTS)
    assert "SUSPICIOUS" not in shown


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("container", CONTAINERS)
def test_bake_gives_the_same_weights(container: str, folder: Path, tmp_path: Path) -> None:
    """Whatever the container, the same bytes come out."""
    output = tmp_path / "baked.safetensors"
    assert call(["bake-ema", str(CONTAINERS[container](folder)), "--weights", "raw", "-o", str(output)]) == 0
    baked = load_file(output)
    assert {name: tensor.tolist() for name, tensor in baked.items()} == {name: tensor.tolist() for name, tensor in WEIGHTS.items()}


@pytest.mark.parametrize("container", ["legacy", "pickle"])
def test_an_average_is_baked_by_default(container: str, folder: Path, tmp_path: Path) -> None:
    """The average of a training checkpoint is found in these containers as in any other."""
    value = {"state_dict": WEIGHTS, "state_dict_ema": {name: tensor + 1 for name, tensor in WEIGHTS.items()}}
    path = folder / "x.ckpt"
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    path.write_bytes(buffer.getvalue() if container == "legacy" else pickle.dumps(value))
    output = tmp_path / "baked.safetensors"
    assert call(["bake-ema", str(path), "-o", str(output)]) == 0
    assert all(torch.equal(tensor, WEIGHTS[name] + 1) for name, tensor in load_file(output).items())


def test_a_folder_with_two_indexes_asks_which(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is chosen where two checkpoints lie in one folder."""
    shards(folder)
    (folder / "other.safetensors.index.json").write_text("{}")
    assert call(["inspect", str(folder)]) == 4
    shown = capsys.readouterr().err
    assert "E132" in shown
    assert "other.safetensors.index.json" in shown
