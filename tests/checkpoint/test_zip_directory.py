"""A zip archive has one reading, or it is refused."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from pathlib import Path

import pytest

from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import CheckpointError, InputRefused
from exporter.tensors import read_tensor
from exporter.weights import bake

EMPTY_DICT = b"\x80\x02}."


def archive_bytes(members: list[tuple[str, bytes]], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip archive of ``members``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


GOOD = [("a/data.pkl", EMPTY_DICT), ("a/data/0", bytes(64)), ("a/version", b"3\n")]


def linked() -> bytes:
    """Return an archive with a symbolic link in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in GOOD:
            archive.writestr(name, content)
        info = zipfile.ZipInfo("a/link")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def local_name_changed() -> bytes:
    """Return an archive whose local header names another member than its directory."""
    content = archive_bytes(GOOD)
    return content.replace(b"a/data/0", b"a/data/1", 1)


def shifted_overlap() -> bytes:
    """Return an archive with two directory entries for the same local header."""
    content = bytearray(archive_bytes([("a/data.pkl", EMPTY_DICT), ("a/data/0", b"x"), ("a/data/1", b"x")]))
    entries = [i for i in range(len(content)) if content[i : i + 4] == b"PK\x01\x02"]
    struct.pack_into("<L", content, entries[2] + 42, struct.unpack_from("<L", content, entries[1] + 42)[0])
    return bytes(content)


def hidden_bytes() -> bytes:
    """Return an archive with bytes between two members that belong to none."""
    content = archive_bytes(GOOD)
    second = content.index(b"PK\x03\x04", 4)
    grown = bytearray(content[:second] + b"hidden--" + content[second:])
    for at in [i for i in range(len(grown)) if grown[i : i + 4] == b"PK\x01\x02"][1:]:
        struct.pack_into("<L", grown, at + 42, struct.unpack_from("<L", grown, at + 42)[0] + 8)
    struct.pack_into("<L", grown, len(grown) - 6, struct.unpack_from("<L", grown, len(grown) - 6)[0] + 8)
    return bytes(grown)


def flagged_encrypted() -> bytes:
    """Return an archive with a member marked as encrypted."""
    content = bytearray(archive_bytes(GOOD))
    content[6] |= 1
    at = content.index(b"PK\x01\x02")
    content[at + 8] |= 1
    return bytes(content)


def with_compressed_code() -> bytes:
    """Return an archive that compresses a member where only TorchScript does."""
    buffer = io.BytesIO(archive_bytes(GOOD))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("a/code/x.py", b"x" * 100, compress_type=zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


HOSTILE = {
    "compressed": (archive_bytes(GOOD, compression=zipfile.ZIP_DEFLATED), "E107"),
    "encrypted": (flagged_encrypted(), "E107"),
    "escaping name": (archive_bytes([*GOOD, ("a/../../x", b"")]), "E107"),
    "absolute name": (archive_bytes([*GOOD, ("/etc/x", b"")]), "E107"),
    "backslash name": (archive_bytes([*GOOD, ("a\\x", b"")]), "E107"),
    "control character in a name": (archive_bytes([*GOOD, ("a/x\x1b[2J", b"")]), "E107"),
    "folder entry": (archive_bytes([("a/", b""), *GOOD]), "E107"),
    "symbolic link": (linked(), "E107"),
    "local header names another member": (local_name_changed(), "E107"),
    "two entries for one member": (shifted_overlap(), "E107"),
    "bytes of no member": (hidden_bytes(), "E107"),
    "cut short": (archive_bytes(GOOD)[:-30], "E107"),
    "something appended": (archive_bytes(GOOD) + b"x", "E107"),
    "comment": (archive_bytes(GOOD)[:-2] + b"\x01\x00x", "E107"),
    "foreign prefix": (b"#!/bin/sh\n" + archive_bytes(GOOD), "E105"),
    "zip in front of zip": (archive_bytes(GOOD) + archive_bytes(GOOD), "E107"),
    "two roots": (archive_bytes([*GOOD, ("b/version", b"3")]), "E105"),
    "two pickles at the top": (archive_bytes([*GOOD, ("b/data.pkl", EMPTY_DICT)]), "E105"),
    "no pickle": (archive_bytes([("a/version", b"3")]), "E105"),
    "npz": (archive_bytes([("a.npy", b"x")]), "E105"),
    "TorchScript without modules": (archive_bytes([*GOOD, ("a/constants.pkl", EMPTY_DICT)]), "E134"),
    "TorchScript before 1.4": (archive_bytes([("a/model.json", b"{}"), ("a/tensors/0", b"")]), "E115"),
    "torch.export without weights": (archive_bytes([("a/archive_format", b"pt2"), ("a/data/weights/x", b"")]), "E134"),
    "torch.export before 2.8": (archive_bytes([("serialized_exported_program.json", b"{}"), ("version", b"1")]), "E115"),
    "torch.package": (archive_bytes([*GOOD, ("a/.data/extern_modules", b"")]), "E115"),
    "compressed code in a checkpoint": (with_compressed_code(), "E107"),
    "big endian": (archive_bytes([*GOOD, ("a/byteorder", b"big")]), "E108"),
    "huge text member": (archive_bytes([*GOOD, ("a/byteorder", b"little" + b" " * 100)]), "E111"),
    "only an end": (b"PK\x05\x06" + bytes(18), "E105"),
    "only a start": (b"PK\x03\x04" + bytes(18), "E107"),
}


def test_the_control_is_accepted(tmp_path: Path) -> None:
    """The archive that the hostile ones are made from opens."""
    path = tmp_path / "good.pt"
    path.write_bytes(archive_bytes(GOOD))
    assert open_checkpoint(path).root == {}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archive_is_refused(case: str, tmp_path: Path) -> None:
    """Each is refused with its code, and the message names the file."""
    content, code = HOSTILE[case]
    path = tmp_path / "hostile.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(path)
    assert refused.value.code == code, refused.value
    assert str(path) in str(refused.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_member_is_refused(tmp_path: Path) -> None:
    """Two members of one name are two readings."""
    path = tmp_path / "twice.pt"
    path.write_bytes(archive_bytes([*GOOD, ("a/data/0", bytes(64))]))
    with pytest.raises(CheckpointError, match="tampered") as refused:
        open_checkpoint(path)
    assert "twice" in refused.value.facts["found"]


def test_wrong_checksum_of_the_pickle_is_refused(digits: Path) -> None:
    """One changed byte in data.pkl is found when the file is opened."""
    path = digits / "digits.pt"
    content = bytearray(path.read_bytes())
    at = content.index(b"model_ema")
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum") as refused:
        open_checkpoint(path)
    assert refused.value.code == "E109"


def test_wrong_checksum_of_a_tensor_is_refused_when_its_bytes_are_used(digits: Path, tmp_path: Path) -> None:
    """One changed bit in an averaged tensor: looking works, baking does not, and nothing is written."""
    path = digits / "digits.pt"
    ref = open_checkpoint(path).root["model_ema"]["module.hidden.weight"]
    content = bytearray(path.read_bytes())
    content[ref.storage.offset + 5] ^= 16
    path.write_bytes(content)
    checkpoint = open_checkpoint(path)
    output = tmp_path / "out" / "w.safetensors"
    with pytest.raises(CheckpointError, match="checksum") as refused:
        bake(checkpoint, BakeConfig(), output)
    assert refused.value.code == "E109"
    assert not list(output.parent.iterdir())
    with pytest.raises(CheckpointError, match="checksum"):
        read_tensor(checkpoint.root["model_ema"]["module.hidden.weight"])


@pytest.mark.parametrize("part", [0.1, 0.5, 0.95, 0.9999])
def test_truncated_file_is_refused(part: float, digits: Path) -> None:
    """A download that stopped is refused at once."""
    path = digits / "digits.pt"
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(path)
    assert refused.value.code == "E107"


def test_single_bit_corruption_is_refused_or_changes_nothing(digits: Path, tmp_path: Path) -> None:
    """Of random flipped bits, each is either refused or leaves the baked tensors as they are."""
    path = digits / "digits.pt"
    content = path.read_bytes()
    output = tmp_path / "w.safetensors"
    bake(open_checkpoint(path), BakeConfig(), output)
    wanted = tensors_of(output)
    rng, refused = random.Random(1), 0
    for _ in range(60):
        damaged = bytearray(content)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            bake(open_checkpoint(path), BakeConfig(), output)
        except InputRefused:
            refused += 1
        else:
            assert tensors_of(output) == wanted
    assert refused > 15


def tensors_of(path: Path) -> dict[str, bytes]:
    """Return name -> bytes of a safetensors file."""
    return {name: read_tensor(ref).tobytes() for name, ref in open_checkpoint(path).root.items()}
