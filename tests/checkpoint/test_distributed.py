"""Folders of torch.distributed.checkpoint are read as torch reads them, shards put together, and refused where they do not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from exporter.artifacts import TensorRef, walk
from exporter.checkpoint import open_checkpoint
from exporter.errors import CheckpointError
from exporter.tensors import read_tensor
from exporter.tensors.shards import NotTiled, check_tiling
from tests.checkpoint.distributed import load, rewrite, save, save_shards

TABLE = torch.arange(60, dtype=torch.float32).reshape(6, 10)
ROWS = [((0, 0), (4, 10)), ((4, 0), (2, 10))]


def assert_equal(ref: object, wanted: torch.Tensor) -> None:
    """Compare a tensor of a checkpoint with torch's, bit for bit."""
    assert isinstance(ref, TensorRef)
    assert ref.shape == tuple(wanted.shape)
    assert read_tensor(ref).tobytes() == wanted.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_what_one_process_saved(tmp_path: Path) -> None:
    """The tree is the dict that was saved: nested keys, lists, plain values, and tensors as torch itself loads them."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    content = {"model": model.state_dict(), "step": 5, "more": [1.5, torch.ones(2), {"name": "x"}], "empty": torch.zeros(0, 3)}
    checkpoint = open_checkpoint(save(content, tmp_path / "saved"))
    assert (checkpoint.container, checkpoint.calls) == ("torch distributed", {})
    assert checkpoint.root["step"] == 5
    assert checkpoint.root["more"][0] == 1.5
    assert checkpoint.root["more"][2] == {"name": "x"}
    assert checkpoint.root["empty"].shape == (0, 3)
    loaded = load({"model": {name: torch.zeros_like(value) for name, value in model.state_dict().items()}}, tmp_path / "saved")
    assert set(checkpoint.root["model"]) == set(loaded["model"])
    for name, wanted in loaded["model"].items():
        assert_equal(checkpoint.root["model"][name], wanted)
    assert {path.name for path in checkpoint.files} == {".metadata", "__0_0.distcp"}
    assert checkpoint.size_bytes == sum(path.stat().st_size for path in checkpoint.files)


@pytest.mark.slow
def test_what_several_processes_sharded(tmp_path: Path, repository: Path) -> None:
    """FSDP2's shards, uneven and empty ones among them, and shards of columns make the tensors that torch gathers."""
    script = repository / "tests" / "checkpoint" / "sharding_process.py"
    started = [subprocess.Popen([sys.executable, "-W", "ignore", script, str(rank), "2", tmp_path], cwd=tmp_path) for rank in range(2)]
    try:
        assert [process.wait(timeout=240) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    checkpoint = open_checkpoint(tmp_path / "checkpoint")
    tensors = {at: node for at, node in walk(checkpoint.root) if isinstance(node, TensorRef)}
    wanted = torch.load(tmp_path / "whole.pt", weights_only=True)
    for at, value in wanted.items():
        assert_equal(tensors[at], value)
    assert len(tensors["model/0.weight"].shards) == 2
    assert tensors["columns"].shards[1].begin == (0, 3)
    slots = {at for at in tensors if at.startswith("optim/state/")}
    assert len(slots) == 6 * 3
    assert wanted.keys() | slots == tensors.keys()


@pytest.mark.parametrize(
    "boxes",
    [
        ROWS,
        [((4, 0), (2, 10)), ((0, 0), (4, 10))],
        [((0, 0), (6, 3)), ((0, 3), (6, 7))],
        [((0, 0), (4, 3)), ((0, 3), (4, 7)), ((4, 0), (2, 3)), ((4, 3), (2, 7))],
        [((0, 0), (2, 6)), ((0, 6), (4, 4)), ((2, 0), (4, 3)), ((2, 3), (2, 3)), ((4, 3), (2, 7))],
        [((0, 0), (6, 10)), ((6, 0), (0, 10))],
    ],
    ids=["rows", "in another order", "columns", "grid", "spiral", "an empty one"],
)
def test_shards_are_put_together(boxes: list[tuple[tuple[int, int], tuple[int, int]]], tmp_path: Path) -> None:
    """Whatever the cut, the tensor is what torch's own loader puts together; also in chunks of a few elements."""
    from exporter.tensors import TensorReader

    folder = save_shards("w", TABLE, boxes, tmp_path / "saved")
    assert torch.equal(load({"w": torch.zeros_like(TABLE)}, folder)["w"], TABLE)
    ref = open_checkpoint(folder).root["w"]
    assert_equal(ref, TABLE)
    with TensorReader() as reader:
        assert b"".join(bytes(part) for part in reader.chunks(ref, chunk_bytes=8)) == TABLE.numpy().tobytes()


def _set(name: str, value: object) -> Callable[[Metadata], None]:
    def edit(metadata: Metadata) -> None:
        setattr(next(iter(metadata.storage_data.values())), name, value)

    return edit


def _drop_chunk(metadata: Metadata) -> None:
    del metadata.state_dict_metadata["w"].chunks[1]
    del metadata.storage_data[MetadataIndex("w", (4, 0))]


def _set_size(metadata: Metadata) -> None:
    metadata.state_dict_metadata["w"].size = torch.Size((1 << 40, 10))


def _set_dtype(metadata: Metadata) -> None:
    metadata.state_dict_metadata["w"].properties.dtype = torch.int32


def _same_item(metadata: Metadata) -> None:
    first, second = metadata.storage_data.values()
    second.offset, second.length = first.offset, first.length


HOSTILE = {
    "a gap": (_drop_chunk, "E117", "which has 6"),
    "a tensor larger than its shards": (_set_size, "E117", "which has"),
    "another dtype": (_set_dtype, "E117", "float32"),
    "an item twice": (_same_item, "E117", "at bytes"),
    "an item beyond the file": (_set("length", 1 << 40), "E117", "at bytes"),
    "an item before the file": (_set("offset", -5), "E117", "offset"),
    "an item inside another": (_set("offset", 7), "E105", "no archive"),
    "an escaping path": (_set("relative_path", "../other/__0_0.distcp"), "E116", "../other"),
    "an absolute path": (_set("relative_path", "/etc/passwd"), "E116", "/etc/passwd"),
    "a missing file": (_set("relative_path", "__7_0.distcp"), "E101", ""),
    "an extension": (_set("transform_descriptors", ["zstd"]), "E117", "zstd"),
    "a shard without bytes": (lambda metadata: metadata.storage_data.popitem(), "E117", "no stored part"),
    "no tables": (lambda metadata: setattr(metadata, "storage_data", None), "E117", "no tables"),
    "a path that is no path": (lambda metadata: setattr(metadata, "planner_data", {"w": ("w", -1)}), "E117", "path"),
    "positions with gaps": (lambda metadata: setattr(metadata, "planner_data", {"w": ("w", 3)}), "E117", "positions"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_parts_that_do_not_fit_are_refused(case: str, tmp_path: Path) -> None:
    """Each contradiction between the metadata, the files and the tensors refuses the folder with the place."""
    edit, code, words = HOSTILE[case]
    folder = rewrite(save_shards("w", TABLE, ROWS, tmp_path / "saved"), edit)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(folder)
    assert refused.value.code == code
    assert words in refused.value.facts.get("found", "")


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([((0, 0), (4, 10)), ((2, 0), (4, 10))], "2 parts for the same elements"),
        ([((0, 0), (6, 6)), ((0, 4), (6, 6))], "2 parts for the same elements"),
        ([((0, 0), (2, 10)), ((4, 0), (2, 10))], "no part for 2 to 4 on axis 0"),
        ([((0, 0), (6, 4)), ((0, 6), (6, 4))], "no part for 4 to 6 on axis 1"),
        ([((0, 0), (6, 10)), ((2, 2), (2, 2))], "2 parts for the same elements"),
        ([((1, 0), (5, 10))], "no part for 0 to 1 on axis 0"),
    ],
)
def test_shards_tile_the_tensor_exactly(boxes: list[tuple[tuple[int, int], tuple[int, int]]], words: str, tmp_path: Path) -> None:
    """Shards that overlap or leave a gap are refused: which values would be the tensor's is anyone's guess."""
    with pytest.raises(CheckpointError, match=words) as refused:
        open_checkpoint(save_shards("w", TABLE, boxes, tmp_path / "saved"))
    assert refused.value.code == "E117"


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ({"a": ("w",), "b": ("w", "x")}, "below a value"),
        ({"a": ("w", "x"), "b": ("w",)}, "two values"),
        ({"a": ("w", 0), "b": ("w", "0")}, "positions"),
    ],
)
def test_paths_that_contradict_each_other_are_refused(paths: dict[str, tuple[str | int, ...]], words: str, tmp_path: Path) -> None:
    """A value is no dict, and a dict is no list."""
    folder = rewrite(save({"a": TABLE, "b": TABLE}, tmp_path / "saved"), lambda metadata: setattr(metadata, "planner_data", paths))
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(folder)


def test_checking_that_shards_tile_is_bounded() -> None:
    """A cut that takes more steps than are allowed is refused before they are taken."""
    boxes = [((row, 0), (row + 1, 1)) for row in range(1000)]
    assert check_tiling((1000, 1), boxes, max_steps=4000) <= 4000
    with pytest.raises(NotTiled) as refused:
        check_tiling((1000, 1), boxes, max_steps=500)
    assert refused.value.limit


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_links_and_cut_files_are_refused(name: str, tmp_path: Path) -> None:
    """A symbolic link leads elsewhere; a file that was cut anywhere is damaged."""
    folder = save_shards("w", TABLE, ROWS, tmp_path / "saved")
    content = (folder / name).read_bytes()
    for length in range(0, len(content), 97):
        (folder / name).write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(folder)
    (tmp_path / "elsewhere").write_bytes(content)
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(folder)
    assert refused.value.code == "E116"


def test_a_flipped_bit_is_found_when_the_shard_is_read(tmp_path: Path) -> None:
    """Opening reads no tensor; reading checks the archive's CRC-32 of every shard."""
    folder = save_shards("w", TABLE, ROWS, tmp_path / "saved")
    storage = open_checkpoint(folder).root["w"].shards[1].tensor.storage
    content = bytearray(storage.path.read_bytes())
    content[storage.offset] ^= 1
    storage.path.write_bytes(content)
    ref = open_checkpoint(folder).root["w"]
    with pytest.raises(CheckpointError) as refused:
        read_tensor(ref)
    assert refused.value.code == "E109"


class Payload:
    """Unpickles as a call of ``open``."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.canary), "w")


def test_calls_are_listed_and_not_made(tmp_path: Path) -> None:
    """A call in the metadata or in an item is shown with its place; nothing runs."""
    canary = tmp_path / "canary"
    folder = save({"w": TABLE, "extra": {"x": Payload(canary)}}, tmp_path / "saved")
    checkpoint = open_checkpoint(folder)
    assert list(checkpoint.calls) == ["extra.x/the top of the file"]
    rewrite(folder, lambda metadata: metadata.planner_data.update(w=("w",), other=Payload(canary)))
    assert [at.partition(":")[0] for at in open_checkpoint(folder).calls] == [".metadata", "extra.x/the top of the file"]
    assert not canary.exists()


def test_a_folder_of_another_kind_says_what_is_in_it(tmp_path: Path) -> None:
    """A folder without metadata is refused with its files and what was expected; one that was saved without coordination too."""
    (tmp_path / "readme.txt").touch()
    with pytest.raises(CheckpointError, match=r"readme\.txt") as refused:
        open_checkpoint(tmp_path)
    assert refused.value.code == "E102"
    (tmp_path / "__0.metadata").touch()
    with pytest.raises(CheckpointError, match="coordination"):
        open_checkpoint(tmp_path)
    os.mkfifo(tmp_path / ".metadata")
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(tmp_path)
    assert refused.value.code == "E102"
