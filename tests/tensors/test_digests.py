"""One digest for a checkpoint, over every file that it is made of."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from exporter.artifacts import Checkpoint, StorageRef, TensorRef
from exporter.errors import CheckpointError
from exporter.tensors import TensorReader, checkpoint_digest
from exporter.tensors.reading import MAX_OPEN_FILES


def several(folder: Path, count: int = 2) -> tuple[Path, ...]:
    """Write files of four bytes each."""
    (folder / "sub").mkdir()
    files = tuple(folder / ("sub" if index % 2 else ".") / f"{index}.bin" for index in range(count))
    for index, path in enumerate(files):
        path.write_bytes(index.to_bytes(4, "little"))
    return files


def test_one_file_has_its_own_digest(tmp_path: Path) -> None:
    """A checkpoint of one file has the SHA-256 of that file."""
    (tmp_path / "a").write_bytes(b"abc")
    assert checkpoint_digest(Checkpoint(tmp_path / "a", "x", 3, {})).hex == hashlib.sha256(b"abc").hexdigest()


def test_several_files_have_one_digest_that_sha256sum_gives_too(tmp_path: Path) -> None:
    """The digest is that of the list that sha256sum prints, so that a person can make it again."""
    files = several(tmp_path)
    digest = checkpoint_digest(Checkpoint(tmp_path, "x", 8, {}, files=files))
    made = subprocess.run("sha256sum 0.bin sub/1.bin | sha256sum", shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert made.stdout.split()[0] == digest.hex
    assert checkpoint_digest(Checkpoint(tmp_path, "x", 8, {}, files=files[::-1])) == digest


@pytest.mark.parametrize("which", [0, 1])
def test_a_change_in_any_file_changes_the_digest(which: int, tmp_path: Path) -> None:
    """No file of a checkpoint is left out of its digest."""
    checkpoint = Checkpoint(tmp_path, "x", 8, {}, files=several(tmp_path))
    before = checkpoint_digest(checkpoint)
    checkpoint.files[which].write_bytes(b"else")
    assert checkpoint_digest(checkpoint) != before


def test_a_file_that_went_away_is_one_message(tmp_path: Path) -> None:
    """Taking the digest of a file that cannot be read raises E103."""
    with pytest.raises(CheckpointError, match="read") as refused:
        checkpoint_digest(Checkpoint(tmp_path / "gone", "x", 0, {}))
    assert refused.value.code == "E103"


def test_more_files_than_stay_open_are_read(tmp_path: Path) -> None:
    """A checkpoint in very many files needs few descriptors, in any order of reading."""
    files = several(tmp_path, MAX_OPEN_FILES + 9)
    refs = [TensorRef("int32", (), (), 0, StorageRef("0", path, 0, 4)) for path in files]
    with TensorReader() as reader:
        for index in [*range(len(refs)), 3, *range(len(refs))]:
            assert b"".join(map(bytes, reader.chunks(refs[index]))) == index.to_bytes(4, "little")
            assert len(reader._files) <= MAX_OPEN_FILES
