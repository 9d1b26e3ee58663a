"""The entries of a TensorFlow checkpoint's index: what each says of its tensor, and the keys of slices.

The messages are TensorFlow's BundleHeaderProto, BundleEntryProto, TensorShapeProto and TensorSliceProto.
"""

from __future__ import annotations

from dataclasses import dataclass

from exporter.checkpoint.protobuf import Malformed, fields, signed
from exporter.checkpoint.sorted_table import unmasked
from exporter.tensors.views import MAX_DIMENSIONS

__all__ = ["DTYPES_BY_NUMBER", "TEXT", "Entry", "Slice", "read_entry", "read_header", "slice_key"]

TEXT = 7
"""The number of the dtype of strings."""
DTYPES_BY_NUMBER = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 8: "complex64", 9: "int64", 10: "bool",
    14: "bfloat16", 17: "uint16", 18: "complex128", 19: "float16", 22: "uint32", 23: "uint64", 24: "float8_e5m2", 25: "float8_e4m3fn",
}  # fmt: skip
"""TensorFlow's number -> torch's name; resources, variants, quantized and four-bit numbers are not read."""

_MAX_SIZE = 1 << 62


@dataclass(frozen=True, slots=True)
class Slice:
    """A box of a tensor that was saved in parts: where it begins on every axis, and its length there; -1 is all of an axis."""

    begin: tuple[int, ...]
    length: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: where its bytes stand; with ``slices`` they stand under keys of their own."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size_bytes: int
    crc32c: int
    slices: tuple[Slice, ...] = ()


def read_header(message: bytes) -> tuple[int, bool]:
    """Return the number of data files, and whether their numbers are little-endian.

    Raises:
        Malformed: it is no header.
    """
    found = _numbers(message, {1: 0, 2: 0})
    if not 0 < found[1] < 100_000:
        raise Malformed(f"a header that names {found[1]} data files")
    return found[1], found[2] == 0


def read_entry(message: bytes) -> Entry:
    """Return what the index says of a tensor.

    Raises:
        Malformed: it is no entry, or has an impossible shape.
    """
    numbers = _numbers(message, {1: 0, 3: 0, 4: 0, 5: 0, 6: 0})
    shape: tuple[int, ...] = ()
    slices = []
    for number, content in fields(message):
        if number == 2 and isinstance(content, bytes):
            shape = _shape(content)
        if number == 7 and isinstance(content, bytes):
            slices.append(_slice(content))
    if not 0 <= numbers[4] < _MAX_SIZE or not 0 <= numbers[5] < _MAX_SIZE:
        raise Malformed(f"{numbers[5]} bytes at byte {numbers[4]}")
    return Entry(numbers[1], shape, numbers[3], numbers[4], numbers[5], unmasked(numbers[6]), tuple(slices))


def _numbers(message: bytes, default: dict[int, int]) -> dict[int, int]:
    found = dict(default)
    for number, value in fields(message):
        if number in default:
            if isinstance(value, bytes):
                raise Malformed(f"bytes in field {number}, which is a number")
            found[number] = signed(value)
    return found


def _shape(message: bytes) -> tuple[int, ...]:
    sizes = []
    for number, content in fields(message):
        if number == 2 and isinstance(content, bytes):
            size = _numbers(content, {1: 0})[1]
            if not 0 <= size < _MAX_SIZE:
                raise Malformed(f"an axis of {size} elements")
            sizes.append(size)
        if number == 3 and content:
            raise Malformed("a shape with an unknown number of axes")
        if len(sizes) > MAX_DIMENSIONS:
            raise Malformed(f"more than {MAX_DIMENSIONS} axes")
    return tuple(sizes)


def _slice(message: bytes) -> Slice:
    begin, length = [], []
    for number, content in fields(message):
        if number == 1 and isinstance(content, bytes):
            found = _numbers(content, {1: 0, 2: -1})
            if not 0 <= found[1] < _MAX_SIZE or not -1 <= found[2] < _MAX_SIZE:
                raise Malformed(f"a slice of {found[2]} elements from {found[1]} on")
            begin.append(found[1])
            length.append(found[2])
        if len(begin) > MAX_DIMENSIONS:
            raise Malformed(f"a slice of more than {MAX_DIMENSIONS} axes")
    return Slice(tuple(begin), tuple(length))


def slice_key(name: bytes, box: Slice) -> bytes:
    """Return the key under which the index has a slice of the tensor ``name``: numbers and text in a form that sorts as they do."""
    key = b"\x00" + _escaped(name) + b"\x00\x01" + _unsigned(len(box.begin))
    return key + b"".join(_sortable(begin) + _sortable(length) for begin, length in zip(box.begin, box.length, strict=True))


def _escaped(name: bytes) -> bytes:
    return b"".join({0: b"\x00\xff", 255: b"\xff\x00"}.get(byte, bytes([byte])) for byte in name)


def _unsigned(value: int) -> bytes:
    content = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(content)]) + content


def _sortable(value: int) -> bytes:
    """Return a signed number: a leading bit for each byte, inverted below zero, then its bits."""
    size = (~value if value < 0 else value).bit_length() // 7 + 1
    content = bytearray(value.to_bytes(10, "big", signed=True)[-size:])
    ones = ((1 << size) - 1) << (16 - size)
    content[0] ^= ones >> 8
    if size > 1:
        content[1] ^= ones & 0xFF
    return bytes(content)
