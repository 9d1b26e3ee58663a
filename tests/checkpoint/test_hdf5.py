"""HDF5 files of Keras: read in a process of their own, tensor by tensor where they stand, and refused in any other form."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from exporter.artifacts import TensorRef
from exporter.checkpoint import open_checkpoint
from exporter.errors import CheckpointError, MissingLibrary
from exporter.tensors import read_tensor

KERNEL = np.arange(6, dtype="f4").reshape(2, 3)


def write(path: Path, **datasets: np.ndarray) -> Path:
    """Write data sets under ``layers/dense/vars`` as Keras does."""
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/dense/vars")
        group.attrs["name"] = "first"
        for name, value in datasets.items():
            group[name] = value
    return path


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "i8", "u1"])
def test_tensors_are_read_where_they_stand(dtype: str, tmp_path: Path) -> None:
    """Values come from the file's own bytes; empty and scalar ones too."""
    path = write(tmp_path / "a.weights.h5", **{"0": KERNEL.astype(dtype), "1": np.array(5, dtype), "2": np.zeros((0, 3), dtype)})
    checkpoint = open_checkpoint(path)
    assert checkpoint.container == "HDF5"
    variables = checkpoint.root["weights"]["layers"]["dense"]["vars"]
    assert variables["<name>"] == "first"
    assert np.array_equal(read_tensor(variables["0"]), KERNEL.astype(dtype))
    assert read_tensor(variables["1"]) == 5
    assert variables["2"].shape == (0, 3)


def test_the_archive_around_it(tmp_path: Path) -> None:
    """In ``.keras`` the tensors stand in the archive itself; a flipped bit is found, wherever it is."""
    inner = write(tmp_path / "inner.h5", **{"0": KERNEL})
    path = tmp_path / "a.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps({"class_name": "Sequential"}))
        archive.write(inner, "model.weights.h5")
    checkpoint = open_checkpoint(path)
    assert (checkpoint.container, checkpoint.root["config"]) == ("Keras", {"class_name": "Sequential"})
    ref = checkpoint.root["weights"]["layers"]["dense"]["vars"]["0"]
    assert isinstance(ref, TensorRef)
    assert ref.storage.path == path
    assert np.array_equal(read_tensor(ref), KERNEL)
    content = bytearray(path.read_bytes())
    content[ref.storage.offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(path)
    assert refused.value.code == "E109"


def _linked(file: h5py.File) -> None:
    file["elsewhere"] = h5py.ExternalLink("other.h5", "/secret")


def _soft(file: h5py.File) -> None:
    file["again"] = h5py.SoftLink("/layers")


def _external(file: h5py.File) -> None:
    file.create_dataset("external", (4,), "f4", external=[("/etc/hostname", 0, 16)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((2, 3), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (2, 3))
    file.create_virtual_dataset("virtual", layout)


def _loop(file: h5py.File) -> None:
    file["layers/again"] = file["layers"]


def _same(file: h5py.File) -> None:
    file["twice"] = file["layers/dense/vars/0"]


REFUSED: dict[str, tuple[Callable[[h5py.File], object], str, str]] = {
    "an external link": (_linked, "E119", "elsewhere"),
    "a soft link": (_soft, "E119", "again"),
    "an external file": (_external, "E119", "one run of bytes"),
    "a virtual data set": (_virtual, "E119", "one run of bytes"),
    "a loop of groups": (_loop, "E119", "deeper groups"),
    "one data set under two names": (_same, "E119", "over another"),
    "compression": (lambda file: file.create_dataset("c", data=KERNEL, compression="gzip"), "E119", "one run of bytes"),
    "big-endian": (lambda file: file.create_dataset("b", data=KERNEL.astype(">f4")), "E113", ">f4"),
    "text": (lambda file: file.create_dataset("t", data="text"), "E113", "O"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_forms_are_refused(case: str, tmp_path: Path) -> None:
    """What leads elsewhere, is packed, or has no plain dtype is refused with its name."""
    change, code, words = REFUSED[case]
    path = write(tmp_path / "a.h5", **{"0": KERNEL})
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(path)
    assert refused.value.code == code
    assert words in refused.value.facts["found"]


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """A file that is cut short or whose structure was overwritten is an error, never a crash of this process."""
    path = write(tmp_path / "a.h5", **{"0": KERNEL})
    content = path.read_bytes()
    for damaged in (content[:700], content[: len(content) // 2], content[:64] + bytes(400) + content[464:]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as refused:
            open_checkpoint(path)
        assert refused.value.code == "E119"


def test_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the extra is missing the message says how to get it, with the exit status of a lacking environment."""
    path = write(tmp_path / "a.h5", **{"0": KERNEL})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingLibrary, match=r"exporter\[keras\]") as lacking:
        open_checkpoint(path)
    assert (lacking.value.code, lacking.value.exit_status) == ("E812", 6)
