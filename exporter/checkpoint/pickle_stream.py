"""A pickle inside an open file: opcodes one after the other, long runs of bytes left where they are.

Nothing is allocated by a length that the pickle declares: a length is held against what is left of the file first, and the
structure that is read against ``MAX_PICKLE_BYTES``. A run of bytes is a range of the file that a tensor may look into.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from typing import Any

from exporter.artifacts import Node, StorageRef
from exporter.checkpoint.pickle_budget import Budget
from exporter.checkpoint.pickle_meanings import MalformedPickle
from exporter.locations import Location
from exporter.tensors.sources import ByteSource

__all__ = ["MAX_PICKLE_BYTES", "PickleStream", "PlacedBytes", "placed"]

MAX_PICKLE_BYTES = 1 << 27
"""A pickle holds structure; tensors stand beside it. The largest that trainers write have some tens of MB."""

_MAX_VALUE_BYTES, _MAX_LINE_BYTES = 1 << 26, 1 << 20

_MAX_BYTES_READ = 1 << 10
_BUFFER_BYTES = 1 << 16
_LENGTHS = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}
_CODES: dict[int, Any] = {ord(opcode.code): opcode for opcode in pickletools.opcodes}


class PlacedBytes(bytes):
    """A short run of bytes that was read, and that knows where it stands."""

    place: StorageRef


class PickleStream:
    """Bytes ``begin`` to ``end`` of an open file, read forward.

    Attributes:
        position: absolute, of the next byte.
        num_read: bytes of structure read so far; skipped runs of bytes do not count.
        budget: shared with the streams that are parts of this one.
    """

    def __init__(self, file: ByteSource, path: Location, begin: int = 0, end: int | None = None, *, budget: Budget | None = None) -> None:
        self.file = file
        self.path = path
        self.begin = begin
        self.end = file.size_bytes if end is None else end
        self.position = begin
        self.num_read = 0
        self.budget = budget if budget is not None else Budget(file.size_bytes)
        self._buffer = b""
        self._buffer_at = begin

    def operations(self) -> Iterator[tuple[Any, Any, int]]:
        """Yield ``(opcode, argument, position)`` up to and including STOP, as ``pickletools.genops`` does."""
        while True:
            at = self.position
            code = self.read(1)
            opcode = _CODES.get(code[0]) if code else None
            if opcode is None:
                raise MalformedPickle(f"the byte {code.hex()}, which is no opcode" if code else "its bytes end before STOP")
            argument: Any
            if opcode.name in _LENGTHS:
                argument = self._run_of_bytes(_LENGTHS[opcode.name])
            else:
                argument = None if opcode.arg is None else opcode.arg.reader(self)
            yield opcode, argument, at
            if opcode.name == "STOP":
                return

    def read(self, count: int) -> bytes:
        """Return the next ``count`` bytes, fewer where the range ends."""
        if count < 0:
            raise MalformedPickle("a negative length")
        if _MAX_VALUE_BYTES < count <= self.end - self.position:
            raise MalformedPickle(f"a single value of {count} bytes", code="E111")
        count = min(count, self.end - self.position)
        self.num_read += count
        if self.num_read > MAX_PICKLE_BYTES:
            raise MalformedPickle(f"more than {MAX_PICKLE_BYTES} bytes of structure", code="E111")
        start = self.position - self._buffer_at
        if start < 0 or start + count > len(self._buffer):
            wanted = min(max(count, _BUFFER_BYTES), self.end - self.position)
            self._buffer, self._buffer_at, start = self.file.read(wanted, self.position), self.position, 0
        content = self._buffer[start : start + count]
        self.position += len(content)
        return content

    def readline(self) -> bytes:
        """Return bytes up to and including the next newline."""
        parts: list[bytes] = []
        while len(parts) < _MAX_LINE_BYTES // 256 and (part := self.read(min(256, self.end - self.position))):
            newline = part.find(b"\n") + 1
            if newline:
                self.position -= len(part) - newline
                self.num_read -= len(part) - newline
                parts.append(part[:newline])
                break
            parts.append(part)
        return b"".join(parts)

    def skip(self, count: int) -> None:
        """Go on behind ``count`` bytes.

        Raises:
            MalformedPickle: there are not as many.
        """
        if not 0 <= count <= self.end - self.position:
            raise MalformedPickle(f"a run of {count} bytes where {self.end - self.position} are left")
        self.position += count

    def check_end(self) -> None:
        """Refuse what follows behind the last byte that was read.

        Raises:
            MalformedPickle: there is something.
        """
        if self.position != self.end:
            raise MalformedPickle(f"{self.end - self.position} bytes after its end")

    def _run_of_bytes(self, length_bytes: int) -> StorageRef | PlacedBytes:
        prefix = self.read(length_bytes)
        count = int.from_bytes(prefix, "little")
        if len(prefix) < length_bytes or count > self.end - self.position:
            raise MalformedPickle(f"a run of {count} bytes where {self.end - self.position} are left")
        place = StorageRef(f"byte {self.position}", self.path, self.position, count)
        if count > _MAX_BYTES_READ:
            self.skip(count)
            return place
        content = PlacedBytes(self.read(count))
        content.place = place
        return content


def placed(node: Node) -> StorageRef | None:
    """Return where a run of bytes stands in the file, None for anything else and for bytes written as text."""
    if isinstance(node, PlacedBytes):
        return node.place
    return node if type(node) is StorageRef else None
