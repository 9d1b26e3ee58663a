"""Flax's MessagePack files made byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

CHUNKED = "__msgpack_chunked_array__"


def head(short: int, code: int, length: int, limit: int = 16) -> bytes:
    return bytes([short | length]) if length < limit else bytes([code]) + length.to_bytes(2, "big")


def text(value: str) -> bytes:
    content = value.encode()
    return head(0xA0, 0xDA, len(content), 32) + content


def raw(content: bytes) -> bytes:
    return b"\xc6" + len(content).to_bytes(4, "big") + content


def extension(kind: int, content: bytes) -> bytes:
    return b"\xc9" + len(content).to_bytes(4, "big") + struct.pack(">b", kind) + content


def array(value: np.ndarray, *, kind: int = 1, dtype: str | None = None, shape: tuple[Any, ...] | None = None) -> bytes:
    value = np.asarray(value)
    axes = value.shape if shape is None else shape
    parts = head(0x90, 0xDC, len(axes)) + b"".join(map(packed, axes))
    return extension(kind, b"\x93" + parts + text(dtype or value.dtype.name) + raw(value.tobytes()))


def packed(value: Any) -> bytes:  # noqa: PLR0911 - one for each kind
    """Return a value as Flax packs it; bytes stand for themselves, packed already."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, Mapping):
        return head(0x80, 0xDE, len(value)) + b"".join(packed(key) + packed(item) for key, item in value.items())
    if isinstance(value, np.ndarray):
        return array(value)
    if isinstance(value, np.generic):
        return array(np.asarray(value), kind=3)
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        return bytes([value]) if 0 <= value < 128 else b"\xd3" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, complex):
        return extension(2, b"\x92" + packed(value.real) + packed(value.imag))
    return text(value)


def chunked(value: np.ndarray, size: int) -> dict[str, Any]:
    """Return an array cut into flat chunks of ``size`` elements."""
    flat = value.reshape(-1)
    chunks = {str(index): flat[begin : begin + size] for index, begin in enumerate(range(0, flat.size, size))}
    return {CHUNKED: True, "shape": {str(axis): length for axis, length in enumerate(value.shape)}, "chunks": chunks}
