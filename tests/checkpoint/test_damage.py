"""Every container, cut short anywhere (small ones at every byte), with flipped bits, in places where no file belongs, and with names that mislead."""

from __future__ import annotations

import os
import random
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from exporter.artifacts import TensorRef, walk
from exporter.checkpoint import open_checkpoint
from exporter.errors import ExporterError, printable
from exporter.tensors import read_tensor
from tests.fuzz import parcels, seeds
from tests.fuzz.targets import TARGETS, check

pytestmark = pytest.mark.filterwarnings("ignore")
CHAIN = next(target for target in TARGETS if target.name == "whole chain")
SMALL = {
    "torch zip": "zip-rt-detr",
    "torch legacy": "legacy-rt-detr",
    "torch tar": "tar-1",
    "pickle": "pickle-arrays-4",
    "safetensors": "safetensors-plain",
    "shards": "shards-two",
    "distributed": "distributed-b",
    "DeepSpeed": "deepspeed-one",
    "torch.export": "program-exported",
    "TorchScript": "program-script",
    "TensorFlow": "tensorflow-plain",
    "Flax": "flax-plain",
}
WITH_CHECKSUMS = {"torch zip", "distributed", "DeepSpeed", "torch.export", "TorchScript", "TensorFlow"}
CUTS, FLIPS = 60, 30


@pytest.fixture(scope="module")
def written() -> dict[str, bytes]:
    """A small checkpoint of every container."""
    made: dict[str, bytes] = {}
    writers = (seeds.torch_files, seeds.tars, seeds.pickles, seeds.safetensors, seeds.folders, seeds.programs, seeds.tensorflow_and_flax)
    for writer in writers:
        made |= dict(writer())
    return {container: made[name] for container, name in SMALL.items()}


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to look at a file in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sandbox").mkdir()
    return tmp_path / "sandbox"


def variants(data: bytes, change: Callable[[bytes], Iterator[bytes]]) -> Iterator[bytes]:
    """Yield ``data`` with one file changed at a time, where it is several."""
    if not data.startswith(parcels.MAGIC):
        yield from change(data)
        return
    files = parcels.unpack(data)
    for name, content in files.items():
        yield from (parcels.pack({**files, name: changed}) for changed in change(content))


@pytest.mark.parametrize("container", SMALL)
def test_cut_short_anywhere(container: str, written: dict[str, bytes], sandbox: Path) -> None:
    """A file that ends early is refused wherever it ends, with its place, and nothing is left behind."""
    content = written[container]

    def cut(whole: bytes) -> Iterator[bytes]:
        step = max(1, len(whole) // CUTS) if len(whole) > 700 else 1
        ends = {*range(0, len(whole), step), *range(max(0, len(whole) - 60), len(whole))}
        yield from (whole[:end] for end in sorted(ends))

    endings = [check(CHAIN, changed, sandbox, watch=False) for changed in variants(content, cut)]
    assert len(endings) > 60
    if container not in {"distributed", "DeepSpeed", "shards", "TensorFlow"}:  # of a folder some files are not needed
        assert all(endings), f"{endings.count('')} cuts went unnoticed"


@pytest.mark.parametrize("container", SMALL)
def test_flipped_bits(container: str, written: dict[str, bytes], sandbox: Path, tmp_path: Path) -> None:
    """A flipped bit is refused, or changes no value where the container has checksums; nothing else happens anywhere."""
    content, rng = written[container], random.Random(5)
    wanted = values(content, tmp_path / "whole")
    refused = 0

    def flip(whole: bytes) -> Iterator[bytes]:
        for _ in range(FLIPS // (1 if whole is content else 3) if whole else 0):
            changed = bytearray(whole)
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            yield bytes(changed)

    for number, changed in enumerate(variants(content, flip)):
        code = check(CHAIN, changed, sandbox, watch=False)
        refused += bool(code)
        if container in WITH_CHECKSUMS and code in {"", "E204", "E201", "E223", "E225"}:
            try:
                found = values(changed, tmp_path / f"flipped{number}")
            except ExporterError:
                continue
            assert all(found[name] == wanted[name] for name in found.keys() & wanted.keys())
    assert refused > 10


def values(data: bytes, folder: Path) -> dict[str, bytes]:
    """Return the bytes of every tensor in a checkpoint, each checksum verified."""
    folder.mkdir()
    found = {}
    for place, node in walk(open_checkpoint(parcels.write(data, folder)).root):
        if isinstance(node, TensorRef):
            found[place] = read_tensor(node).tobytes()
    return found


def made_pipe(path: Path) -> None:
    """Make a pipe."""
    os.mkfifo(path)


def made_socket(path: Path) -> None:
    """Make a socket."""
    before = Path.cwd()
    os.chdir(path.parent)  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(before)


def made_loop(path: Path) -> None:
    """Make a link to itself."""
    path.symlink_to(path.name)


def made_unreadable(path: Path) -> None:
    """Make a file that may not be read."""
    path.write_bytes(b"x")
    path.chmod(0)


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (made_pipe, "E102"),
    "a socket": (made_socket, "E10"),
    "a device without an end": (lambda path: path.symlink_to("/dev/zero"), "E102"),
    "a device that is empty": (lambda path: path.symlink_to(os.devnull), "E102"),
    "a loop of links": (made_loop, "E10"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "E101"),
    "an empty folder": (lambda path: path.mkdir(), "E102"),
    "nothing": (lambda path: None, "E101"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)), "E105"),
    "text": (lambda path: path.write_text("hello"), "E105"),
    "an empty file": (lambda path: path.touch(), "E106"),
    "a file that may not be read": (made_unreadable, "E10"),
}


@pytest.mark.parametrize("place", PLACES)
def test_where_no_checkpoint_is(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command ends at once with exit status 4, the path and the reason, and writes nothing."""
    from exporter.cli.app import main

    make, code = PLACES[place]
    path = tmp_path / "x.pt"
    make(path)
    if place == "a file that may not be read" and os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    before = sorted(tmp_path.iterdir())
    for arguments in (
        ["inspect", str(path)],
        ["bake-ema", str(path), "-o", str(tmp_path / "out.safetensors")],
        ["init", str(path), "-o", str(tmp_path / "e.toml")],
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        shown = capsys.readouterr().err
        assert (caught.value.code, shown.startswith(f"error[{code}")) == (4, True), shown
        assert str(path) in shown
    assert sorted(tmp_path.iterdir()) == before
    assert stat.S_ISSOCK(path.lstat().st_mode) if place == "a socket" else True


MISLEADING = {
    "escape": "\x1b[2J\x1b]0;owned\x07",
    "bidi": "\u202egnp.exe",
    "newline": "a\nerror[E000] fake",
    "null": "a\0b",
    "wide": "\ud800",
    "line": "\u2028x",
}


@pytest.mark.parametrize("name", MISLEADING)
@pytest.mark.parametrize("place", ["key", "tensor", "file", "global"])
def test_names_are_shown_escaped(name: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No name of a file, in a file or of a global reaches the terminal as it is, neither in what is shown nor in errors."""
    import torch

    from exporter.cli.app import main

    text = MISLEADING[name]
    if place == "file" and name in {"null", "wide"}:
        pytest.skip("no file has such a name")
    path = tmp_path / (f"{text}.pt".replace("/", "") if place == "file" else "x.pt")
    if place == "global":
        from tests.checkpoint.test_payloads import PROTO4, call
        from tests.checkpoint.test_payloads import text as pushed

        encoded = text.replace("\ud800", "x")
        pickled = PROTO4 + call(pushed("evil") + pushed(encoded) + b"\x93") + b"."
        path.write_bytes(pickled)
    else:
        state = {text if place == "tensor" else "w": torch.ones(1)}
        torch.save({text if place == "key" else "state_dict": state, "ema": None}, path)
    for arguments in (
        ["inspect", str(path), "--tree"],
        ["bake-ema", str(path), "-o", str(tmp_path / "o.safetensors")],
        ["bake-ema", str(path), "--weights", "raw"],
    ):
        with pytest.raises(SystemExit):
            main([*arguments, *(["-o", str(tmp_path / "p.safetensors")] if "raw" in arguments else [])])
        shown = capsys.readouterr()
        for line in (shown.out + shown.err).split("\n"):
            assert printable(line) == line
            assert not line.startswith("error[E000]")
