"""MessagePack, value by value, with long runs of bytes left where they stand; strict, and without the library, which would load them."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from exporter.tensors.sources import ByteSource

__all__ = ["Bytes", "Extension", "Malformed", "MapHeader", "Reader", "Sequence"]

_BLOCK_BYTES = 1 << 16
_MAX_TEXT_BYTES = 1 << 16

_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_LENGTHS = {
    0xD9: ("text", 1), 0xDA: ("text", 2), 0xDB: ("text", 4), 0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4),
    0xDC: ("sequence", 2), 0xDD: ("sequence", 4), 0xDE: ("map", 2), 0xDF: ("map", 4),
    0xC7: ("extension", 1), 0xC8: ("extension", 2), 0xC9: ("extension", 4),
}  # fmt: skip
_CONSTANTS: dict[int, None | bool] = {0xC0: None, 0xC2: False, 0xC3: True}


class Malformed(ValueError):
    """The bytes break the format; the text says what was found."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """A run of bytes in the file, not read."""

    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Sequence:
    """The head of a list: so many values follow."""

    count: int


@dataclass(frozen=True, slots=True)
class MapHeader:
    """The head of a map: so many pairs of key and value follow."""

    count: int


@dataclass(frozen=True, slots=True)
class Extension:
    """The head of a value of the application's own type; its bytes follow, up to ``end``."""

    kind: int
    end: int


class Reader:
    """Reads one value after the other from an open file; ``position`` is where the next one begins."""

    def __init__(self, file: ByteSource) -> None:
        self._file, self._size = file, file.size_bytes
        self._block, self._start = b"", 0
        self.position = 0

    @property
    def is_at_end(self) -> bool:
        """Whether no byte is left."""
        return self.position == self._size

    def value(self) -> None | bool | int | float | str | Bytes | Sequence | MapHeader | Extension:
        """Return the next value, of a list, map or extension the head.

        Raises:
            Malformed: the value is cut off, of no known form, or declares more than there is.
        """
        begin = self.position
        (code,) = self._take(1)
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 0x100
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code in _NUMBERS:
            number: int | float = struct.unpack(_NUMBERS[code], self._take(struct.calcsize(_NUMBERS[code])))[0]
            return number
        kind, length = self._length(code, begin)
        if kind == "text":
            return self._text(length)
        if kind == "bytes":
            self._skip(length)
            return Bytes(self.position - length, length)
        if kind == "extension":
            (number_of_kind,) = struct.unpack(">b", self._take(1))
            self._require(length)
            return Extension(number_of_kind, self.position + length)
        self._require(length if kind == "sequence" else 2 * length)  # every value takes a byte at least
        return Sequence(length) if kind == "sequence" else MapHeader(length)

    def _length(self, code: int, begin: int) -> tuple[str, int]:
        if code in _LENGTHS:
            kind, size = _LENGTHS[code]
            return kind, int.from_bytes(self._take(size), "big")
        if 0xD4 <= code <= 0xD8:
            return "extension", 1 << code - 0xD4
        if code < 0xC0:
            return ("map", code & 0xF) if code < 0x90 else ("sequence", code & 0xF) if code < 0xA0 else ("text", code & 0x1F)
        raise Malformed(f"the byte {code:02x} at byte {begin}, which begins no value")

    def _text(self, length: int) -> str:
        if length > _MAX_TEXT_BYTES:
            raise Malformed(f"text of {length} bytes at byte {self.position}")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError as err:
            raise Malformed(f"text at byte {self.position - length} that is no text") from err

    def _skip(self, count: int) -> None:
        self._require(count)
        self.position += count

    def _require(self, count: int) -> None:
        if count > self._size - self.position:
            raise Malformed(f"{count} bytes or values declared at byte {self.position}, with {self._size - self.position} bytes left")

    def _take(self, count: int) -> bytes:
        self._require(count)
        if not self._start <= self.position <= self.position + count <= self._start + len(self._block):
            self._block, self._start = self._file.read(max(count, _BLOCK_BYTES), self.position), self.position
        found = self._block[self.position - self._start : self.position - self._start + count]
        if len(found) != count:
            raise Malformed(f"the end of the file at byte {self.position + len(found)}")
        self.position += count
        return found
