"""safetensors in several files: opened by index or folder, and refused where index and shards disagree."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import CheckpointError, LayoutError
from exporter.tensors import checkpoint_digest
from exporter.weights import bake
from tests.checkpoint.tensor_forms import same_bytes

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = {
    FIRST: {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2, dtype=torch.float16)},
    SECOND: {"head.weight": torch.arange(4, dtype=torch.int64)},
}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A folder with two shards, written by the safetensors library, and their index."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name, tensors in SHARDS.items():
        save_file(tensors, folder / name)
    write_index(folder)
    return folder


def index() -> dict[str, Any]:
    """Return the index of the shards."""
    weight_map = {tensor: name for name, tensors in SHARDS.items() for tensor in tensors}
    total = sum(tensor.nbytes for tensors in SHARDS.values() for tensor in tensors.values())
    return {"metadata": {"total_size": total, "note": "x"}, "weight_map": weight_map}


def write_index(folder: Path, value: object = None) -> None:
    """Write an index into the folder."""
    (folder / INDEX).write_text(value if isinstance(value, str) else json.dumps(value or index()))


def test_tensors_of_all_shards_under_one_name_each(sharded: Path) -> None:
    """The tree holds the tensors of all shards, in the order of the index, with the library's own values."""
    checkpoint = open_checkpoint(sharded / INDEX)
    assert checkpoint.container == "safetensors in shards"
    loaded = load_file(sharded / FIRST) | load_file(sharded / SECOND)
    same_bytes(checkpoint.root, {name: loaded[name] for name in index()["weight_map"]})
    assert checkpoint.files == (sharded / INDEX, sharded / FIRST, sharded / SECOND)
    assert checkpoint.size_bytes == sum(path.stat().st_size for path in checkpoint.files)
    assert checkpoint.metadata == {"note": "x", "shards": "2"}


def test_baked_from_the_index(sharded: Path, tmp_path: Path) -> None:
    """The weights bake into one file, and the digest of their source covers every file."""
    checkpoint = open_checkpoint(sharded / INDEX)
    weights = bake(checkpoint, BakeConfig(choice="raw"), tmp_path / "out.safetensors")
    assert {name: tensor.tolist() for name, tensor in load_file(weights.path).items()} == {
        name: tensor.tolist() for tensors in SHARDS.values() for name, tensor in tensors.items()
    }
    assert weights.provenance.made_from["checkpoint"] == str(checkpoint_digest(checkpoint))


@pytest.mark.parametrize("name", [INDEX, FIRST, SECOND])
def test_no_file_of_it_is_overwritten(name: str, sharded: Path) -> None:
    """An output that is the index or a shard is refused."""
    before = (sharded / name).read_bytes()
    with pytest.raises(LayoutError, match="overwrite") as refused:
        bake(open_checkpoint(sharded / INDEX), BakeConfig(choice="raw"), sharded / name)
    assert refused.value.code == "E215"
    assert (sharded / name).read_bytes() == before


def test_every_file_counts_in_the_digest(sharded: Path) -> None:
    """A change in any shard or in the index changes the digest."""
    digests = {checkpoint_digest(open_checkpoint(sharded / INDEX)).hex}
    save_file({"head.weight": torch.zeros(4, dtype=torch.int64)}, sharded / SECOND)
    digests.add(checkpoint_digest(open_checkpoint(sharded / INDEX)).hex)
    write_index(sharded, {"weight_map": index()["weight_map"]})
    digests.add(checkpoint_digest(open_checkpoint(sharded / INDEX)).hex)
    assert len(digests) == 3


def test_the_layout_of_a_hub_cache_is_followed(sharded: Path, tmp_path: Path) -> None:
    """Index and shards that are all links into one other folder, as download caches keep them, are read."""
    cache = tmp_path / "snapshot"
    cache.mkdir()
    for name in (INDEX, FIRST, SECOND):
        (cache / name).symlink_to(os.path.relpath(sharded / name, cache))
    assert len(open_checkpoint(cache / INDEX).root) == 3


def change(**changes: object) -> Callable[[Path], None]:
    """Return a function that writes an index with other entries."""

    def write(folder: Path) -> None:
        value = index()
        for key, entry in changes.items():
            part = value["metadata"] if key == "total_size" else value["weight_map"]
            if entry is None:
                del part[key.replace("_", ".", 1) if key != "total_size" else key]
            else:
                part[key.replace("_", ".", 1) if key != "total_size" else key] = entry
        write_index(folder, value)

    return write


def linked_away(folder: Path) -> None:
    """Put a link to another folder in the place of a shard."""
    away = folder.parent / "away.safetensors"
    (folder / SECOND).rename(away)
    (folder / SECOND).symlink_to(away)


def linked_in_a_circle(folder: Path) -> None:
    """Put a link to itself in the place of a shard."""
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to(SECOND)


def pipe(folder: Path) -> None:
    """Put a pipe in the place of a shard."""
    (folder / SECOND).unlink()
    os.mkfifo(folder / SECOND)


def directory(folder: Path) -> None:
    """Put a folder in the place of a shard."""
    (folder / SECOND).unlink()
    (folder / SECOND).mkdir()


def other_container(folder: Path) -> None:
    """Put a torch file in the place of a shard."""
    torch.save({"head.weight": torch.arange(4)}, folder / SECOND)


def cut(folder: Path) -> None:
    """Cut a shard short."""
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-1])


LYING: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard that is missing": (lambda folder: (folder / SECOND).unlink(), "E101"),
    "a shard that is a pipe": (pipe, "E102"),
    "a shard that is a folder": (directory, "E102"),
    "a shard that is empty": (lambda folder: (folder / SECOND).write_bytes(b""), "E114"),
    "a shard that is cut short": (cut, "E114"),
    "a shard that is another container": (other_container, "E114"),
    "a link that leads away": (linked_away, "E132"),
    "a link in a circle": (linked_in_a_circle, "E132"),
    "a tensor that its shard lacks": (change(head_other=SECOND), "E132"),
    "a tensor in the wrong shard": (change(head_weight=FIRST), "E132"),
    "a tensor that the index lacks": (change(layer_bias=None), "E132"),
    "too large a total": (change(total_size=41), "E132"),
    "a total that is text": (change(total_size="36"), "E132"),
    "a total with a fraction": (change(total_size=36.5), "E132"),
    "a path upwards": (change(head_weight=f"../model/{SECOND}"), "E132"),
    "a path downwards": (change(head_weight=f"sub/{SECOND}"), "E132"),
    "an absolute path": (change(head_weight=f"/tmp/{SECOND}"), "E132"),
    "a path of Windows": (change(head_weight=f"..\\{SECOND}"), "E132"),
    "a stream of Windows": (change(head_weight=f"{SECOND}:x"), "E132"),
    "the folder itself": (change(head_weight="."), "E132"),
    "no name": (change(head_weight=""), "E132"),
    "a control character": (change(head_weight="\x1b[2J.safetensors"), "E132"),
    "a null byte": (change(head_weight="a\x00b"), "E132"),
    "a name of a megabyte": (change(head_weight="a" * 1_000_000), "E132"),
    "a number for a file": (change(head_weight=3), "E132"),
    "no tensors": (lambda folder: write_index(folder, {"weight_map": {}}), "E132"),
    "a list for a map": (lambda folder: write_index(folder, {"weight_map": [1]}), "E132"),
    "metadata that is text": (lambda folder: write_index(folder, {"metadata": "x", "weight_map": {"a": FIRST}}), "E132"),
    "a tensor twice": (lambda folder: write_index(folder, f'{{"weight_map": {{"a": "{FIRST}", "a": "{SECOND}"}}}}'), "E132"),
    "nested beyond measure": (lambda folder: write_index(folder, '{"weight_map":' * 100_000), "E132"),
    "an integer beyond measure": (lambda folder: write_index(folder, '{"weight_map": {"a": ' + "9" * 10_000 + "}}"), "E132"),
    "bytes that are no text": (lambda folder: (folder / INDEX).write_bytes(b'{"weight_map": "\xff"}'), "E132"),
}


@pytest.mark.parametrize("case", LYING)
def test_lying_index_is_refused(case: str, sharded: Path) -> None:
    """Each is refused with its code; the message names a file and the reason."""
    spoil, code = LYING[case]
    spoil(sharded)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(sharded / INDEX)
    assert refused.value.code == code, refused.value
    assert str(sharded) in refused.value.facts["file"]
    assert len(str(refused.value)) < 2000


def test_index_truncated_at_any_byte_is_refused(sharded: Path) -> None:
    """Whatever is missing at the end of the index, it is refused."""
    content = (sharded / INDEX).read_bytes()
    for length in range(len(content)):
        (sharded / INDEX).write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(sharded / INDEX)
