"""Writing in a second thread, so that reading and checking the next bytes does not wait for the last ones.

The buffers go round: the reader takes one, fills and checks it, hands it over, and gets it back once it is written.
"""

from __future__ import annotations

import os
import queue
import threading
from types import TracebackType

from typing_extensions import Self

__all__ = ["BUFFER_BYTES", "WriterBehind"]

BUFFER_BYTES = 1 << 20
_NUM_BUFFERS = 8
_EARLY_BYTES = 1 << 25
"""After so many bytes the disk is asked to begin: the sync at the end then has little left to do."""


class WriterBehind:
    """Writes to a descriptor, in order, from its current position on; used in ``with``, which ends when all is written."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[memoryview, memoryview] | None] = queue.SimpleQueue()
        self._error: OSError | None = None
        self._num_buffers = 0
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for the thread; raise what it met, unless something else is on its way."""
        self._full.put(None)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def take(self) -> memoryview:
        """Return a buffer that nothing is waiting to be written from."""
        if self._num_buffers < _NUM_BUFFERS and self._free.empty():
            self._num_buffers += 1
            return memoryview(bytearray(BUFFER_BYTES))
        buffer = self._free.get()
        if self._error is not None:
            raise self._error
        return buffer

    def give(self, part: memoryview, buffer: memoryview) -> None:
        """Write ``part``, which lies in ``buffer``, a buffer that was taken; it goes back to the others."""
        self._full.put((part, buffer))

    def write(self, content: bytes | memoryview) -> None:
        """Write a copy of ``content``."""
        view = memoryview(content)
        while view:
            buffer = self.take()
            part = buffer[: min(len(view), len(buffer))]
            part[:] = view[: len(part)]
            self.give(part, buffer)
            view = view[len(part) :]

    def _run(self) -> None:
        position = early = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        while (item := self._full.get()) is not None:
            part, buffer = item
            try:
                while self._error is None and len(part):
                    count = os.write(self._descriptor, part)
                    part, position = part[count:], position + count
                if position - early >= _EARLY_BYTES and self._error is None and hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(self._descriptor, early, position - early, os.POSIX_FADV_DONTNEED)
                    early = position
            except OSError as err:
                self._error = err
            self._free.put(buffer)
