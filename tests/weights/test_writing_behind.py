"""What is given to the writing thread arrives whole and in order, or its error does."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

import pytest

from exporter.weights import writing_behind
from exporter.weights.writing_behind import BUFFER_BYTES, WriterBehind

LARGE = 70 * BUFFER_BYTES
"""Goes past the page cache where the file system takes that."""


def write_parts(descriptor: int, count: int) -> None:
    """Write ``count`` buffers of zeros."""
    with WriterBehind(descriptor) as target:
        for _ in range(count):
            target.write(bytes(BUFFER_BYTES))


def is_direct(descriptor: int) -> bool:
    """Return whether writes to the descriptor go past the page cache."""
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def takes_direct(folder: Path) -> bool:
    """Return whether the file system of the folder lets writes go past the page cache."""
    with (folder / "probe").open("wb") as file:
        try:
            fcntl.fcntl(file.fileno(), fcntl.F_SETFL, fcntl.fcntl(file.fileno(), fcntl.F_GETFL) | os.O_DIRECT)
        except OSError:
            return False
    return True


def test_all_arrives_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of any size are written one after the other, from where the file stands, though the disk is asked to begin."""
    monkeypatch.setattr(writing_behind, "_EARLY_BYTES", BUFFER_BYTES)
    parts = [bytes([number]) * size for number, size in enumerate([3, BUFFER_BYTES, 0, 3 * BUFFER_BYTES + 7, 1, 9 * BUFFER_BYTES])]
    with (tmp_path / "x").open("wb") as file:
        file.write(b"head")
        file.flush()
        with WriterBehind(file.fileno()) as target:
            for part in parts:
                target.write(part)
            target.space()[:4] = b"tail"
            target.advance(4)
        file.write(b"end")
    assert (tmp_path / "x").read_bytes() == b"".join([b"head", *parts, b"tail", b"end"])


@pytest.mark.parametrize("extra", [0, 1, 4096, BUFFER_BYTES - 1], ids=["whole buffers", "a byte more", "a block more", "a byte less"])
def test_a_large_output_goes_past_the_page_cache(extra: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are the same, also those at the end that fill no block, and the descriptor is as it was before."""
    states = []
    write = os.pwrite

    def watched(descriptor: int, part: memoryview, position: int) -> int:
        states.append(is_direct(descriptor))
        return write(descriptor, part, position)

    monkeypatch.setattr(os, "pwrite", watched)
    content = os.urandom(64 * BUFFER_BYTES + extra)
    with (tmp_path / "x").open("w+b", buffering=0) as file:
        with WriterBehind(file.fileno(), expected_bytes=len(content)) as target:
            target.write(content)
        assert not is_direct(file.fileno())
    assert (tmp_path / "x").read_bytes() == content
    if takes_direct(tmp_path):
        assert all(states[:64])


@pytest.mark.parametrize("refused", ["flag", "write"])
def test_a_file_system_without_direct_writes_gets_plain_ones(refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it refuses the flag or only the first write, everything arrives."""
    write, control = os.pwrite, fcntl.fcntl

    def refuse_flag(descriptor: int, command: int, *argument: int) -> int:
        if command == fcntl.F_SETFL and argument[0] & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return control(descriptor, command, *argument)

    def refuse_write(descriptor: int, part: memoryview, position: int) -> int:
        if is_direct(descriptor):
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(descriptor, part, position)

    if refused == "flag":
        monkeypatch.setattr(fcntl, "fcntl", refuse_flag)
    else:
        monkeypatch.setattr(os, "pwrite", refuse_write)
    with (tmp_path / "x").open("wb") as file, WriterBehind(file.fileno(), expected_bytes=LARGE) as target:
        for number in range(70):
            target.write(bytes([number]) * BUFFER_BYTES)
    content = (tmp_path / "x").read_bytes()
    assert content == b"".join(bytes([number]) * BUFFER_BYTES for number in range(70))


@pytest.mark.parametrize("num_parts", [1, 40], ids=["at the end", "while writing"])
def test_an_error_of_the_disk_is_raised(num_parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk ends the block with its error, whether it is met early or on the last bytes; nothing waits for ever."""

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with (tmp_path / "x").open("wb") as file:
        monkeypatch.setattr(os, "pwrite", fail)
        with pytest.raises(OSError, match="No space"):
            write_parts(file.fileno(), num_parts)
        monkeypatch.undo()


def test_what_went_wrong_first_is_raised(tmp_path: Path) -> None:
    """An error of the reader leaves the block as it is, and the thread has ended."""
    with (tmp_path / "x").open("wb") as file:
        target = WriterBehind(file.fileno())
        with contextlib.suppress(ZeroDivisionError), target:
            target.write(b"content")
            target.write(bytes(1 // 0))
    assert not any(thread.is_alive() for thread in target._threads)
