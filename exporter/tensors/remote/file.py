"""An object behind a URL as a source of bytes: kept blocks for small reads, several requests ahead for large ones.

The object is the same from the first byte to the last, or an error: every request asks for the version that was found first.
What is in memory is bounded, whatever the object's size: 8 MiB of blocks, and 16 MiB read ahead.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import tempfile
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, TypeVar

from typing_extensions import Self

from exporter.errors import CheckpointError
from exporter.locations import RemotePath
from exporter.tensors.remote import transport as limits_of
from exporter.tensors.remote.transport import Found, Limits, Transient, Transport, changed

__all__ = ["RemoteFile", "open_remote"]

MAX_WHOLE_BYTES = 1 << 31
"""Containers that another program has to read are fetched whole up to this size."""

_PIECE_BYTES = 1 << 21
_BLOCK_BYTES = 1 << 16
_KEPT_BYTES = 1 << 23
_AHEAD_BYTES = 1 << 24
_MAX_RUNNING, _MAX_STARTED = 16, 256
_MERGED_GAP_BYTES = 1 << 12
_UNREACHED = "the server of the URL cannot be reached"
_FAILED = "reading the checkpoint at the URL failed"

Result = TypeVar("Result")


@dataclass(slots=True)
class _Piece:
    """Bytes that will be read, and the request for them once it was made."""

    begin: int
    end: int
    request: Future[bytes] | None = None


class _Kept:
    """Short runs of bytes that were read, the oldest dropped first."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._contents: dict[int, bytes] = {}
        self._size = 0

    def add(self, begin: int, content: bytes) -> None:
        """Keep ``content``, which stands at byte ``begin``."""
        if begin not in self._contents:
            self._begins.insert(bisect_right(self._begins, begin), begin)
        self._size += len(content) - len(self._contents.pop(begin, b""))
        self._contents[begin] = content
        while self._size > _KEPT_BYTES:
            oldest = next(iter(self._contents))
            self._size -= len(self._contents.pop(oldest))
            self._begins.remove(oldest)

    def at(self, position: int) -> memoryview | None:
        """Return what is kept from ``position`` on."""
        number = bisect_right(self._begins, position) - 1
        if number < 0:
            return None
        begin = self._begins[number]
        content = self._contents[begin]
        return memoryview(content)[position - begin :] if position < begin + len(content) else None


class _Object:
    """The connection to one object and what was found there; kept by the path that names it."""

    def __init__(self, path: RemotePath, transport: Transport, limits: Limits) -> None:
        self._path = path
        self._transport = transport
        self._limits = limits
        self.kept = _Kept()
        self.whole: Any = None
        self.found = self._start(transport.find).result()
        if self.found.head:
            self.kept.add(0, self.found.head)
            self.found = replace(self.found, head=b"")

    def get(self, begin: int, end: int) -> Future[bytes]:
        """Ask for bytes ``begin`` to ``end``, at most a piece."""
        return self._start(lambda: self._transport.get(begin, end, self.found))

    def _start(self, make: Callable[[], Coroutine[Any, Any, Result]]) -> Future[Result]:
        return asyncio.run_coroutine_threadsafe(self._insist(make), self._transport.loop)

    async def _insist(self, make: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Await what ``make`` returns, again and again as far as that may help."""
        limits, pause_s, last = self._limits, self._limits.pause_s, Transient("no attempt")
        for attempt in range(1, limits.attempts + 1):
            try:
                return await asyncio.wait_for(make(), limits.request_s)
            except Transient as err:
                last = err
            except asyncio.TimeoutError:
                last = Transient(f"a request that was not answered within {limits.request_s:g} s")
            if attempt < limits.attempts:
                await asyncio.sleep(min(max(pause_s * random.uniform(0.75, 1.25), last.pause_s), limits.longest_pause_s))  # noqa: S311 - no secret
                pause_s *= 2
        facts = {"url": self._path, "found": f"{last.reason}, {limits.attempts} times"}
        problem = _UNREACHED if last.code == "E155" else _FAILED
        raise CheckpointError(last.code, problem, facts=facts, help="try again later, or download the file and name it") from last


class RemoteFile:
    """One reader of an object; what it reads ahead is its own."""

    def __init__(self, path: RemotePath, source: _Object) -> None:
        self.path = path
        self.size_bytes = source.found.size_bytes
        self._source = source
        self._plan: deque[_Piece] = deque()
        self._next = -1
        self._block_bytes = _BLOCK_BYTES

    def read(self, count: int, at: int) -> bytes:
        """Return ``count`` bytes from byte ``at`` on, fewer only where the file ends."""
        content = bytearray(max(0, min(count, self.size_bytes - at)))
        self.read_into(memoryview(content), at)
        return bytes(content)

    def read_into(self, target: memoryview, at: int) -> int:
        """Fill ``target`` from byte ``at`` on and return how many bytes were read."""
        end = max(at, min(at + len(target), self.size_bytes))
        if self._source.whole is not None:
            return os.preadv(self._source.whole.fileno(), [target[: end - at]], at)
        position = at
        while position < end:
            part = self._part(position, end)[: end - position]
            target[position - at : position - at + len(part)] = part
            position += len(part)
            self._drop(position)
        return end - at

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Take note that these ranges are read soon, in this order; requests for them run ahead of the reader."""
        pieces: list[_Piece] = []
        for begin, stop in ranges:
            end = min(stop, self.size_bytes)
            kept = self._source.kept.at(begin)
            if begin >= end or (kept is not None and len(kept) >= end - begin) or self._planned(begin) is not None:
                continue
            last = pieces[-1] if pieces else None
            if last is not None and 0 <= begin - last.end <= _MERGED_GAP_BYTES and end - last.begin <= _PIECE_BYTES:
                last.end = end
                continue
            pieces += [_Piece(at, min(at + _PIECE_BYTES, end)) for at in range(begin, end, _PIECE_BYTES)]
        self._plan.extend(pieces)

    def fileno(self) -> int:
        """Return a descriptor of a private copy of the whole object.

        Raises:
            CheckpointError: it is too large for that (E158), or cannot be read (E15x).
        """
        if self._source.whole is None:
            if self.size_bytes > MAX_WHOLE_BYTES:
                facts = {
                    "url": self.path,
                    "found": f"{self.size_bytes} bytes in a container that is read whole",
                    "expected": f"at most {MAX_WHOLE_BYTES}",
                }
                help_text = "download the file, then name it"
                raise CheckpointError(
                    "E158", "the checkpoint at the URL is too large for its container to be read there", facts=facts, help=help_text
                )
            self._source.whole = self._copied()
            weakref.finalize(self._source, self._source.whole.close)
        descriptor: int = self._source.whole.fileno()
        return descriptor

    def close(self) -> None:
        """Give up what was to be read ahead."""
        for piece in self._plan:
            if piece.request is not None:
                piece.request.cancel()
        self._plan.clear()

    def __enter__(self) -> Self:
        """Return the file."""
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        """Close the file."""
        self.close()

    def _copied(self) -> Any:  # noqa: ANN401 - a temporary file, which has no public type
        whole = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the object
        buffer = memoryview(bytearray(_PIECE_BYTES))
        position = 0
        self.expect([(0, self.size_bytes)])
        try:
            while position < self.size_bytes:
                count = self.read_into(buffer, position)
                whole.write(buffer[:count])
                position += count
            whole.flush()
        except BaseException:
            whole.close()
            raise
        return whole

    def _part(self, position: int, end: int) -> memoryview:
        """Return some bytes from ``position`` on."""
        kept = self._source.kept.at(position)
        if kept is not None:
            return kept
        piece = self._planned(position)
        if piece is None and end - position >= _BLOCK_BYTES:
            self._plan.extendleft(reversed([_Piece(at, min(at + _PIECE_BYTES, end)) for at in range(position, end, _PIECE_BYTES)]))
            piece = self._plan[0]
        if piece is None:
            return self._block(position, end)
        self._start_ahead(piece)
        assert piece.request is not None  # noqa: S101 - just made
        return memoryview(piece.request.result())[position - piece.begin :]

    def _block(self, position: int, end: int) -> memoryview:
        """Return what a small read needs and what probably comes next: more, the longer it goes on one after the other."""
        self._block_bytes = min(2 * self._block_bytes, _PIECE_BYTES) if position == self._next else _BLOCK_BYTES
        begin = position if position == self._next else min(position // _BLOCK_BYTES * _BLOCK_BYTES, max(0, self.size_bytes - _BLOCK_BYTES))
        stop = min(max(end, begin + self._block_bytes), self.size_bytes)
        content = self._source.get(begin, stop).result()
        self._source.kept.add(begin, content)
        self._next = stop
        return memoryview(content)[position - begin :]

    def _planned(self, position: int) -> _Piece | None:
        return next((piece for piece in self._plan if piece.begin <= position < piece.end), None)

    def _start_ahead(self, wanted: _Piece) -> None:
        """Make the requests that are due: the wanted one, and those that follow as far as memory and politeness allow."""
        if wanted.request is None:
            wanted.request = self._source.get(wanted.begin, wanted.end)
        size = num_running = 0
        for number, piece in enumerate(self._plan):
            size += piece.end - piece.begin
            if piece.request is None:
                if size > _AHEAD_BYTES or number >= _MAX_STARTED or num_running >= _MAX_RUNNING:
                    return
                piece.request = self._source.get(piece.begin, piece.end)
            num_running += not piece.request.done()

    def _drop(self, position: int) -> None:
        """Let go of the piece that ends at ``position``: it was read."""
        for number, piece in enumerate(itertools.islice(self._plan, _MAX_STARTED)):
            if piece.end == position:
                del self._plan[number]
                return


def open_remote(path: RemotePath) -> RemoteFile:
    """Open the object at ``path``, of the version that the path holds, if it holds one.

    Raises:
        CheckpointError: it is not there (E151), may not be read (E152), is not served in ranges (E153), is another one than
            before (E154), or the server fails (E155 to E159).
        MissingLibrary: the protocol needs a library that is not installed (E861 to E863).
    """
    if isinstance(path.opened, _Object):
        return RemoteFile(path, path.opened)
    source = _Object(path, _transport(path, limits_of.LIMITS), limits_of.LIMITS)
    found: Found = source.found
    if path.version and path.version != found.version:
        raise changed(path, found.version, path.version)
    return RemoteFile(replace(path, version=found.version, opened=source), source)


def _transport(path: RemotePath, limits: Limits) -> Transport:
    if path.scheme in {"http", "https"}:
        from exporter.tensors.remote.http import HttpTransport

        return HttpTransport(path, limits)
    from exporter.tensors.remote.buckets import GcsTransport, S3Transport

    return S3Transport(path, limits) if path.scheme == "s3" else GcsTransport(path, limits)
