"""How much work and memory the pickles of one checkpoint may take, whatever their opcodes are.

An empty list is one byte of a pickle and some seventy of memory: a bound on the size of a pickle alone bounds neither. The costs are
those of CPython's objects, rounded up, with what looking through the tree takes.
"""

from __future__ import annotations

import io

from exporter.checkpoint.pickle_meanings import MalformedPickle

__all__ = ["COSTS", "Budget", "ValuesStream"]

_OPERATIONS, _MEMORY_BYTES = 2_500_000, 200 << 20
_BYTES_PER_OPERATION, _BYTES_PER_BYTE = 512, 32
_MAX_VALUE_BYTES, _MAX_LINE_BYTES = 1 << 26, 1 << 20

_CONTAINER, _LOOKED_THROUGH = 64, 96
COSTS: dict[str, int] = {
    **dict.fromkeys(("EMPTY_LIST", "LIST", "EMPTY_DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), _CONTAINER + _LOOKED_THROUGH),
    **dict.fromkeys(("DICT", "EMPTY_SET", "FROZENSET"), 232 + _LOOKED_THROUGH),
    **dict.fromkeys(("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "BINPERSID"), 200 + _LOOKED_THROUGH),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), 100),
    "MARK": 88,
}
"""Opcode -> bytes of what it makes; every other makes or moves a value."""

VALUE = 40
"""Bytes of a number, or of a place in a container."""


class Budget:
    """What is left; shared by all pickles of one checkpoint.

    Args:
        size_bytes: of the checkpoint: 500 MB of tensors may have a million more opcodes than a small file.
    """

    def __init__(self, size_bytes: int = 0) -> None:
        self.operations = _OPERATIONS + size_bytes // _BYTES_PER_OPERATION
        self.memory_bytes = _MEMORY_BYTES + size_bytes // _BYTES_PER_BYTE

    def check(self) -> None:
        """Refuse to go on where one of them is spent.

        Raises:
            MalformedPickle: E111.
        """
        if self.operations < 0:
            raise MalformedPickle("more opcodes than a checkpoint of its size has", code="E111")
        if self.memory_bytes < 0:
            raise MalformedPickle("more values than a checkpoint of its size has", code="E111")


class ValuesStream(io.BytesIO):
    """A pickle in memory, of which no single value is read that is longer than any that is written."""

    def read(self, count: int | None = -1, /) -> bytes:
        """Return the next ``count`` bytes."""
        if count is not None and _MAX_VALUE_BYTES < count <= self.getbuffer().nbytes - self.tell():
            raise MalformedPickle(f"a single value of {count} bytes", code="E111")
        return super().read(count)

    def readline(self, count: int | None = -1, /) -> bytes:
        """Return bytes up to the next newline, cut where the line is longer than any that is written."""
        del count
        return super().readline(_MAX_LINE_BYTES)
