"""What is given to the writing thread arrives whole and in order, or its error does."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest

from exporter.weights import writing_behind
from exporter.weights.writing_behind import BUFFER_BYTES, WriterBehind


def write_parts(descriptor: int, count: int) -> None:
    """Write ``count`` buffers of zeros."""
    with WriterBehind(descriptor) as target:
        for _ in range(count):
            target.write(bytes(BUFFER_BYTES))


def test_all_arrives_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers and copies of any size are written one after the other, from where the file stands, though the disk is asked to begin."""
    monkeypatch.setattr(writing_behind, "_EARLY_BYTES", BUFFER_BYTES)
    parts = [bytes([number]) * size for number, size in enumerate([3, BUFFER_BYTES, 0, 3 * BUFFER_BYTES + 7, 1, 9 * BUFFER_BYTES])]
    with (tmp_path / "x").open("wb") as file:
        file.write(b"head")
        file.flush()
        with WriterBehind(file.fileno()) as target:
            for part in parts:
                target.write(part)
            buffer = target.take()
            buffer[:4] = b"tail"
            target.give(buffer[:4], buffer)
    assert (tmp_path / "x").read_bytes() == b"".join([b"head", *parts, b"tail"])


@pytest.mark.parametrize("num_parts", [1, 40], ids=["at the end", "while writing"])
def test_an_error_of_the_disk_is_raised(num_parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk ends the block with its error, whether it is met early or on the last bytes; nothing waits for ever."""

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with (tmp_path / "x").open("wb") as file:
        monkeypatch.setattr(os, "write", fail)
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
    assert not target._thread.is_alive()
    assert (tmp_path / "x").read_bytes() == b"content"
