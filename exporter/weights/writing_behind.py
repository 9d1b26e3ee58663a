"""Writing and looking for NaN in threads of their own, so that reading the next bytes does not wait for the last ones.

The buffers go round: one is filled, handed over, and comes back once it is written and looked at. A large output goes to the disk
past the page cache where the file system lets it: the bytes are not copied once more, they push nothing else out of memory, and
the sync at the end has nothing left to do.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from exporter.errors import ExporterError
from exporter.tensors.finite import FiniteCheck

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BUFFER_BYTES", "WriterBehind"]

BUFFER_BYTES = 1 << 20
_NUM_BUFFERS = 8
_DIRECT_BYTES = 1 << 26
"""From this size on an output goes past the page cache; what reads a smaller one next finds it there."""
_BLOCK_BYTES = 1 << 12
"""What goes past the page cache is a multiple of a disk's blocks, in memory, in the file and in length."""
_EARLY_BYTES = 1 << 25
"""Through the page cache: after so many bytes the disk is asked to begin, so that the sync at the end has little left to do."""


@dataclass(slots=True, eq=False)
class _Buffer:
    """Memory that begins at a page, how much of it is filled, what is to be looked at in it, and how many threads still use it."""

    memory: memoryview
    filled: int = 0
    checks: list[tuple[memoryview, Callable[[memoryview], None]]] = field(default_factory=list)
    num_users: int = 0


class WriterBehind:
    """Writes to a descriptor, in order, from its current position on; used in ``with``, which ends when all is written and looked at.

    Args:
        descriptor: of a regular file, open for writing.
        expected_bytes: how much is going to be written, as far as that is known.

    Attributes:
        is_finite: for the checks of all that is written.
    """

    def __init__(self, descriptor: int, *, expected_bytes: int = 0) -> None:
        self._descriptor = descriptor
        self._free: queue.SimpleQueue[_Buffer] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[_Buffer | None] = queue.SimpleQueue()
        self._unseen: queue.SimpleQueue[_Buffer | None] = queue.SimpleQueue()
        self._buffer: _Buffer | None = None
        self._num_buffers = 0
        self._lock = threading.Lock()
        self._running = threading.Event()
        self.is_finite = FiniteCheck()
        self._error: OSError | None = None
        self._objection: ExporterError | None = None
        self._position = os.lseek(descriptor, 0, os.SEEK_CUR)
        self._direct = expected_bytes >= _DIRECT_BYTES and self._position == 0 and self._go_direct(on=True)
        self._threads = [threading.Thread(target=work, name=work.__name__, daemon=True) for work in (self._write_all, self._look_at_all)]

    def __enter__(self) -> Self:
        """Start the threads."""
        for thread in self._threads:
            thread.start()
            self._running.wait()  # one after the other: a tracer cannot be put into two threads at once
            self._running.clear()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for the threads; raise what they met, unless something else is on its way."""
        if kind is None and self._buffer is not None:
            self._hand_over(self._buffer)
        self._full.put(None)
        self._unseen.put(None)
        for thread in self._threads:
            thread.join()
        if self._direct:
            self._go_direct(on=False)
        os.lseek(self._descriptor, self._position, os.SEEK_SET)
        if kind is None:
            self.raise_objection()
            if self._error is not None:
                raise self._error

    def space(self) -> memoryview:
        """Return the memory that the next bytes belong in: one or more, as many as fit into the buffer that is being filled."""
        if self._buffer is None:
            self._buffer = self._take()
        return self._buffer.memory[self._buffer.filled :]

    def advance(self, count: int, check: Callable[[memoryview], None] | None = None) -> None:
        """Take the first ``count`` bytes of ``space()`` as the next ones of the file.

        Args:
            count: of bytes.
            check: called with them in another thread; what it raises comes out of ``raise_objection``, or of the end of ``with``.
        """
        buffer = self._buffer
        if buffer is None:
            raise ValueError("space() was not asked for")
        if check is not None:
            buffer.checks.append((buffer.memory[buffer.filled : buffer.filled + count], check))
        buffer.filled += count
        if buffer.filled == len(buffer.memory):
            self._hand_over(buffer)

    def raise_objection(self) -> None:
        """Raise what a check has found so far."""
        if self._objection is not None:
            raise self._objection

    def write(self, content: bytes | memoryview) -> None:
        """Write a copy of ``content``."""
        view = memoryview(content)
        while view:
            space = self.space()
            count = min(len(view), len(space))
            space[:count] = view[:count]
            self.advance(count)
            view = view[count:]

    def _take(self) -> _Buffer:
        """Return a buffer that no thread uses any more."""
        if self._num_buffers < _NUM_BUFFERS and self._free.empty():
            self._num_buffers += 1
            return _Buffer(memoryview(mmap.mmap(-1, BUFFER_BYTES)))
        buffer = self._free.get()
        if self._error is not None:
            raise self._error
        return buffer

    def _hand_over(self, buffer: _Buffer) -> None:
        buffer.num_users = 1 + bool(buffer.checks)
        if buffer.checks:
            self._unseen.put(buffer)
        self._full.put(buffer)
        self._buffer = None

    def _give_back(self, buffer: _Buffer) -> None:
        with self._lock:
            buffer.num_users -= 1
            is_free = buffer.num_users == 0
        if is_free:
            buffer.filled = 0
            buffer.checks.clear()
            self._free.put(buffer)

    def _look_at_all(self) -> None:
        self._running.set()
        while (buffer := self._unseen.get()) is not None:
            try:
                for part, check in buffer.checks:
                    if self._objection is None:
                        check(part)
            except ExporterError as err:
                self._objection = err
            self._give_back(buffer)

    def _write_all(self) -> None:
        self._running.set()
        early = self._position
        while (buffer := self._full.get()) is not None:
            try:
                if self._error is None and self._objection is None:
                    self._write(buffer.memory[: buffer.filled])
                if self._position - early >= _EARLY_BYTES and not self._direct and self._error is None and hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(self._descriptor, early, self._position - early, os.POSIX_FADV_DONTNEED)
                    early = self._position
            except OSError as err:
                self._error = err
            self._give_back(buffer)

    def _write(self, part: memoryview) -> None:
        if self._direct and len(part) % _BLOCK_BYTES:  # the end of the file
            self._direct = not self._go_direct(on=False)
        while part:
            try:
                count = os.pwrite(self._descriptor, part, self._position)
            except OSError as err:
                if not self._direct or err.errno != errno.EINVAL:
                    raise
                self._direct = not self._go_direct(on=False)  # this file system does not take it after all
                continue
            part, self._position = part[count:], self._position + count

    def _go_direct(self, *, on: bool) -> bool:
        """Write past the page cache from now on, or through it; return whether the file system agreed."""
        flag = getattr(os, "O_DIRECT", 0)
        if not flag:
            return False
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | flag if on else flags & ~flag)
        except OSError:
            return False
        return True
