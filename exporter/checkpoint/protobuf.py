"""Protocol buffers by their wire format, field by field, as far as checkpoints need them; strict, and without the library."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["Malformed", "fields", "read_varint", "signed"]

_MAX_VARINT_BYTES = 10
_FIXED = {1: 8, 5: 4}


class Malformed(ValueError):
    """The bytes break the format; the text says what was found."""


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the unsigned number at ``position``, seven bits a byte, and the position behind it.

    Raises:
        Malformed: it does not end, or has more than 64 bits.
    """
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        if position + index >= len(data):
            raise Malformed(f"a number at byte {position} that does not end")
        byte = data[position + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if value >> 64:
                break
            return value, position + index + 1
    raise Malformed(f"a number at byte {position} of more than 64 bits")


def signed(value: int) -> int:
    """Return the number that an ``int32`` or ``int64`` field means by an unsigned one of 64 bits."""
    return value - (1 << 64) if value >> 63 else value


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and the value of every field: an unsigned integer, or the bytes of a text, message or packed list.

    Raises:
        Malformed: a field reaches beyond the message, or is of a type that is not used any more.
    """
    position = 0
    while position < len(message):
        tag, position = read_varint(message, position)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise Malformed(f"a field with the number {number}")
        if kind == 0:
            value, position = read_varint(message, position)
            yield number, value
            continue
        if kind == 2:
            size, position = read_varint(message, position)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise Malformed(f"field {number} of the wire type {kind}")
        if size > len(message) - position:
            raise Malformed(f"field {number} of {size} bytes, with {len(message) - position} left")
        content = message[position : position + size]
        yield number, content if kind == 2 else int.from_bytes(content, "little")
        position += size
