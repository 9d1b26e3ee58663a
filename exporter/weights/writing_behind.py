"""Writing in a second thread, so that reading and checking the next bytes does not wait for the last ones.

The buffers go round: one is filled and checked, handed over, and comes back once it is written. A large output goes to the disk
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
from types import TracebackType
from typing import TYPE_CHECKING

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


class WriterBehind:
    """Writes to a descriptor, in order, from its current position on; used in ``with``, which ends when all is written.

    Args:
        descriptor: of a regular file, open for writing.
        expected_bytes: how much is going to be written, as far as that is known.
    """

    def __init__(self, descriptor: int, *, expected_bytes: int = 0) -> None:
        self._descriptor = descriptor
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[memoryview, int] | None] = queue.SimpleQueue()
        self._buffer: memoryview | None = None
        self._filled = 0
        self._num_buffers = 0
        self._error: OSError | None = None
        self._position = os.lseek(descriptor, 0, os.SEEK_CUR)
        self._direct = expected_bytes >= _DIRECT_BYTES and self._position == 0 and self._go_direct(on=True)
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for the thread; raise what it met, unless something else is on its way."""
        if kind is None and self._buffer is not None:
            self._hand_over(self._buffer)
        self._full.put(None)
        self._thread.join()
        if self._direct:
            self._go_direct(on=False)
        os.lseek(self._descriptor, self._position, os.SEEK_SET)
        if kind is None and self._error is not None:
            raise self._error

    def space(self) -> memoryview:
        """Return the memory that the next bytes belong in: one or more, as many as fit into the buffer that is being filled."""
        if self._buffer is None:
            self._buffer = self._take()
            self._filled = 0
        return self._buffer[self._filled :]

    def advance(self, count: int) -> None:
        """Take the first ``count`` bytes of ``space()`` as the next ones of the file."""
        self._filled += count
        if self._buffer is not None and self._filled == len(self._buffer):
            self._hand_over(self._buffer)

    def write(self, content: bytes | memoryview) -> None:
        """Write a copy of ``content``."""
        view = memoryview(content)
        while view:
            space = self.space()
            count = min(len(view), len(space))
            space[:count] = view[:count]
            self.advance(count)
            view = view[count:]

    def _take(self) -> memoryview:
        """Return a buffer that nothing is waiting to be written from; it begins at a page."""
        if self._num_buffers < _NUM_BUFFERS and self._free.empty():
            self._num_buffers += 1
            return memoryview(mmap.mmap(-1, BUFFER_BYTES))
        buffer = self._free.get()
        if self._error is not None:
            raise self._error
        return buffer

    def _hand_over(self, buffer: memoryview) -> None:
        self._full.put((buffer, self._filled))
        self._buffer = None

    def _run(self) -> None:
        early = self._position
        while (item := self._full.get()) is not None:
            buffer, count = item
            try:
                if self._error is None:
                    self._write(buffer[:count])
                if self._position - early >= _EARLY_BYTES and not self._direct and self._error is None and hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(self._descriptor, early, self._position - early, os.POSIX_FADV_DONTNEED)
                    early = self._position
            except OSError as err:
                self._error = err
            self._free.put(buffer)

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
