"""The tar archives of torch before 0.1.10: no torch of today writes them, but it still reads them, and says what is in them."""

from __future__ import annotations

import io
import pickle
import random
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import CheckpointError, InputRefused
from exporter.weights import bake
from tests.checkpoint.tensor_forms import same_bytes, write

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tarfile, about how torch unpacks

MACHINE = pickle.dumps({"protocol_version": 1000, "little_endian": True, "type_sizes": {}}, 2)


class Tree(pickle.Pickler):
    """Writes tensors as persistent ids: their keys as text."""

    def persistent_id(self, obj: object) -> str | None:
        """Return the key of a ``Key``."""
        return str(obj.number) if isinstance(obj, Key) else None


class Key:
    """Stands for a tensor or storage in the tree."""

    def __init__(self, number: int) -> None:
        self.number = number


def triple(key: object, second: object, kind: str) -> bytes:
    """Return a pickle of ``(key, second, class)``."""
    parts = [pickle.dumps(value, 2)[2:-1] for value in (key, second)]
    return b"\x80\x02" + parts[0] + parts[1] + f"ctorch\n{kind}\n".encode() + b"\x87."


def storage(key: object, content: bytes, kind: str = "FloatStorage", item: int = 4, count: int | None = None) -> bytes:
    """Return a storage as it stands in the file."""
    return triple(key, "cpu", kind) + (len(content) // item if count is None else count).to_bytes(8, "little") + content


def tensor(key: object, of: object, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    """Return a tensor as it stands in the file."""
    numbers = struct.pack(f"<i4x{len(shape)}q{len(strides)}qq", len(shape), *shape, *strides, offset)
    return triple(key, of, "FloatTensor") + numbers


def tree(value: object) -> bytes:
    """Return the pickle of the tree."""
    buffer = io.BytesIO()
    Tree(buffer, 2).dump(value)
    return buffer.getvalue()


def parts() -> dict[str, bytes]:
    """Return the four files of a checkpoint with two storages, a part of one, and four tensors."""
    values = struct.pack("<6f", *range(6))
    return {
        "sys_info": MACHINE,
        "pickle": tree({"w": Key(10), "t": Key(11), "p": Key(12), "n": Key(13), "epoch": 3}),
        "tensors": pickle.dumps(4, 2)
        + tensor(10, 1, (2, 3), (3, 1))
        + tensor(11, 1, (3, 2), (1, 3))
        + tensor(12, 3, (2,), (1,), 1)
        + triple(13, 2, "LongTensor")
        + struct.pack("<i4x1q1qq", 1, 2, 1, 0),
        "storages": pickle.dumps(2, 2)
        + storage(1, values)
        + storage(2, struct.pack("<2q", 7, -8), "LongStorage", 8)
        + pickle.dumps([(3, 1, 2, 4)], 2),
    }


def archive(members: Mapping[str, bytes], *, style: int = tarfile.PAX_FORMAT, mtime: float = 1.5) -> bytes:
    """Return a tar archive; a time with a fraction makes an extended header, as torch's had."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=style) as made:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), mtime
            made.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("style", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_tensors_as_torch_loads_them(style: int, tmp_path: Path) -> None:
    """Names, dtypes, shapes and bytes are those that torch.load gives."""
    path = write(tmp_path / "x.pt", archive(parts(), style=style))
    checkpoint = open_checkpoint(path)
    assert checkpoint.container == "torch tar"
    assert checkpoint.root["epoch"] == 3
    wanted = torch.load(path, weights_only=False)
    assert wanted["p"].tolist() == [3.0, 4.0]
    same_bytes({name: ref for name, ref in checkpoint.root.items() if name != "epoch"}, {n: t for n, t in wanted.items() if n != "epoch"})


def test_baked(tmp_path: Path) -> None:
    """The weights of such a file bake like any other's."""
    members = parts() | {"pickle": tree({"state_dict": {"w": Key(10), "n": Key(13)}})}
    weights = bake(open_checkpoint(write(tmp_path / "x.pt", archive(members))), BakeConfig(choice="raw"), tmp_path / "out.safetensors")
    assert sorted(open_checkpoint(weights.path).root) == ["n", "w"]


def linked(kind: bytes) -> bytes:
    """Return an archive in which one member is a link or a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as made:
        for name, content in parts().items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
        info = tarfile.TarInfo("more")
        info.type, info.linkname = kind, "/etc/passwd"
        made.addfile(info)
    return buffer.getvalue()


def renaming() -> bytes:
    """Return an archive whose extended header gives a member another name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name, content in parts().items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.pax_headers = {"path": "other"} if name == "pickle" else {}
            made.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def twice() -> bytes:
    """Return an archive with one member twice."""
    content = archive(parts()).rstrip(b"\x00")
    return content + bytes(-len(content) % 512) + archive({"pickle": b"x"})


def with_part(name: str, content: bytes) -> bytes:
    """Return an archive in which one of the four files is another."""
    return archive(parts() | {name: content})


CALL = b"cos\nsystem\n(X\x04\x00\x00\x00truetR0"
ONE = pickle.dumps(1, 2)
NO_VIEWS = pickle.dumps([], 2)
FLOATS = bytes(24)
LYING = {
    "a symbolic link": (linked(tarfile.SYMTYPE), "E133"),
    "a hard link": (linked(tarfile.LNKTYPE), "E133"),
    "a folder": (linked(tarfile.DIRTYPE), "E133"),
    "a device": (linked(tarfile.CHRTYPE), "E133"),
    "a member twice": (twice(), "E133"),
    "a member with another name in an extended header": (renaming(), "E133"),
    "an escaping name": (archive(parts() | {"../x": b""}), "E133"),
    "an absolute name": (archive(parts() | {"/etc/x": b""}), "E133"),
    "bytes behind the end": (archive(parts()) + b"x" * 512, "E133"),
    "no end": (archive(parts())[:2048], "E133"),
    "a member more": (archive(parts() | {"more": b"x"}), "E105"),
    "a member less": (archive({name: content for name, content in parts().items() if name != "tensors"}), "E105"),
    "big endian": (with_part("sys_info", pickle.dumps({"little_endian": False}, 2)), "E108"),
    "no facts of the machine": (with_part("sys_info", pickle.dumps(3, 2)), "E110"),
    "bytes after a pickle": (with_part("pickle", parts()["pickle"] + b"x"), "E110"),
    "a call in the facts": (with_part("sys_info", b"\x80\x02" + CALL + MACHINE[2:]), "E110"),
    "a call in the storages": (with_part("storages", b"\x80\x02" + CALL + parts()["storages"][2:]), "E110"),
    "a storage beyond its file": (with_part("storages", ONE + storage(1, FLOATS, count=1 << 40) + NO_VIEWS), "E104"),
    "a storage of 2^64 elements": (with_part("storages", ONE + storage(1, FLOATS, count=(1 << 64) - 1) + NO_VIEWS), "E104"),
    "more storages than there are": (with_part("storages", pickle.dumps(1 << 62, 2) + storage(1, FLOATS) + NO_VIEWS), "E110"),
    "a negative number of storages": (with_part("storages", pickle.dumps(-1, 2) + NO_VIEWS), "E110"),
    "a class of storage that is none": (with_part("storages", ONE + storage(1, FLOATS, "OtherStorage") + NO_VIEWS), "E113"),
    "a storage twice": (with_part("storages", pickle.dumps(2, 2) + storage(1, FLOATS) * 2 + NO_VIEWS), "E112"),
    "a part beyond its storage": (with_part("storages", ONE + storage(1, FLOATS) + pickle.dumps([(3, 1, 2, 5)], 2)), "E112"),
    "a part of nothing": (with_part("storages", ONE + storage(1, FLOATS) + pickle.dumps([(3, 9, 0, 1)], 2)), "E112"),
    "a tensor beyond its storage": (with_part("tensors", ONE + tensor(10, 1, (7,), (1,))), "E112"),
    "a tensor of nothing": (with_part("tensors", ONE + tensor(10, 9, (1,), (1,))), "E112"),
    "negative strides": (with_part("tensors", ONE + tensor(10, 1, (2,), (-1,), 1)), "E112"),
    "too many axes": (with_part("tensors", ONE + triple(10, 1, "FloatTensor") + struct.pack("<i4x", 1 << 30)), "E112"),
    "a tree that names no tensor": (with_part("pickle", tree({"w": Key(99)})), "E112"),
}


@pytest.mark.parametrize("case", LYING)
def test_lying_archive_is_refused(case: str, tmp_path: Path) -> None:
    """Each is refused with its code; the message names the file and the reason."""
    content, code = LYING[case]
    path = write(tmp_path / "x.pt", content)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(path)
    assert refused.value.code == code, refused.value
    assert refused.value.facts["file"] == str(path)
    assert refused.value.facts["found"]


def test_truncated_at_any_byte_is_refused(tmp_path: Path) -> None:
    """Whatever is missing at the end of the members, the file is refused; of the zeros behind them two blocks must be there."""
    content = archive(parts(), style=tarfile.USTAR_FORMAT, mtime=1)
    end = len(content.rstrip(b"\x00"))
    path = tmp_path / "x.pt"
    for length in range(1, end):
        with pytest.raises(CheckpointError) as refused:
            open_checkpoint(write(path, content[:length]))
        assert refused.value.facts["file"] == str(path)


def test_any_flipped_bit_is_refused_or_stays_inside(tmp_path: Path) -> None:
    """A flip is refused in one message, or gives tensors that lie inside the file."""
    content = archive(parts(), style=tarfile.USTAR_FORMAT, mtime=1)
    path = tmp_path / "x.pt"
    rng, refused = random.Random(0), 0
    for _ in range(400):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content.rstrip(b"\x00")))] ^= 1 << rng.randrange(8)
        try:
            bake(open_checkpoint(write(path, bytes(damaged))), BakeConfig(choice="raw"), tmp_path / "out.safetensors")
        except InputRefused:
            refused += 1
    assert refused > 150


def test_payload_is_seen_and_does_not_run(tmp_path: Path) -> None:
    """A call in the tree is listed and runs nowhere."""
    canary = tmp_path / "canary"
    run = f"touch {canary}".encode()
    call = b"\x80\x02cposix\nsystem\n(X" + len(run).to_bytes(4, "little") + run + b"tR."
    path = write(tmp_path / "x.pt", with_part("pickle", call))
    checkpoint = open_checkpoint(path)
    assert [str(found) for found in checkpoint.calls.values()] == ["posix.system"]
    with pytest.raises(InputRefused):
        bake(checkpoint, BakeConfig(choice="raw"), tmp_path / "out.safetensors")
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()
