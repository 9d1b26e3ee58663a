"""The bytes of one open file, by position, wherever it lies.

Readers of containers ask for ranges and never for a descriptor, so that what they do with a file on this machine they do with an
object on another.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from exporter.errors import CheckpointError
from exporter.locations import Location, RemotePath

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ByteSource", "LocalFile", "open_regular"]


class ByteSource(Protocol):
    """An open file; used in ``with``."""

    @property
    def path(self) -> Location:
        """What was opened; of a remote object, with the version that it had then."""

    @property
    def size_bytes(self) -> int:
        """Size of the whole file."""

    def read(self, count: int, at: int) -> bytes:
        """Return ``count`` bytes from byte ``at`` on, fewer only where the file ends.

        Raises:
            CheckpointError: they cannot be read (E103; E15x for a remote object).
        """

    def read_into(self, target: memoryview, at: int) -> int:
        """Fill ``target`` from byte ``at`` on and return how many bytes were read, fewer than asked for only where the file ends.

        Raises:
            CheckpointError: they cannot be read (E103; E15x for a remote object).
        """

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Take note that bytes ``begin`` to ``end`` of every range are read soon, in this order: a remote object is read ahead."""

    def fileno(self) -> int:
        """Return a descriptor of all the bytes, for another process; a remote object is fetched whole for it.

        Raises:
            CheckpointError: it is remote and too large for that (E158), or cannot be read (E15x).
        """

    def close(self) -> None:
        """Let go of the file."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None: ...


class LocalFile:
    """A regular file of this machine."""

    def __init__(self, path: Path, descriptor: int, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self._descriptor = descriptor

    def read(self, count: int, at: int) -> bytes:
        """Return ``count`` bytes from byte ``at`` on, fewer only where the file ends."""
        try:
            content = os.pread(self._descriptor, count, at)
            while 0 < len(content) < count and (more := os.pread(self._descriptor, count - len(content), at + len(content))):
                content += more  # the kernel hands out 2 GiB at most
        except OSError as err:
            raise self._unreadable(err) from err
        return content

    def read_into(self, target: memoryview, at: int) -> int:
        """Fill ``target`` from byte ``at`` on and return how many bytes were read."""
        filled = 0
        try:
            while filled < len(target):
                count = os.preadv(self._descriptor, [target[filled:]], at + filled)
                if count == 0:
                    break
                filled += count
        except OSError as err:
            raise self._unreadable(err) from err
        return filled

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Do nothing: the kernel reads ahead by itself."""

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        """Return the file."""
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        """Close the file."""
        self.close()

    def __del__(self) -> None:
        """Close the file if nobody did."""
        self.close()

    def _unreadable(self, err: OSError) -> CheckpointError:
        return CheckpointError("E103", "the checkpoint cannot be read", facts={"file": self.path, "found": err.strerror or err})


def open_regular(path: Location) -> ByteSource:
    """Open ``path`` for reading; never waits on a pipe or a device.

    Raises:
        CheckpointError: it is missing (E101), no regular file (E102), or cannot be read (E103); E15x for a URL.
        MissingLibrary: a library for its URL is not installed (E86x).
    """
    if isinstance(path, RemotePath):
        from exporter.tensors.remote import open_remote

        return open_remote(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as err:
        raise CheckpointError("E101", "the checkpoint does not exist", facts={"file": path}) from err
    except OSError as err:
        raise CheckpointError("E103", "the checkpoint cannot be read", facts={"file": path, "found": err.strerror or err}) from err
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        facts = {"file": path, "found": _file_kind(status.st_mode), "expected": "one regular file: a torch zip file or safetensors"}
        raise CheckpointError("E102", "the checkpoint is not a regular file", facts=facts)
    return LocalFile(path, descriptor, status.st_size)


def _file_kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "something else")
