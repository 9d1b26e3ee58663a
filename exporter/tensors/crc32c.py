"""CRC-32C (Castagnoli), as TensorFlow's checkpoints hold it: from google-crc32c where it is installed, else computed here.

A CRC is linear: the remainder of a message is the sum, without carries, of the remainders of its parts, each moved on by the bytes
that follow it. So NumPy folds a block in half again and again: the first half, moved on by the length of a half, is added to the second.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["crc32c", "crc32c_bytewise", "crc32c_folding"]

_POLYNOMIAL = 0x82F63B78  # reflected
_ALL = 0xFFFFFFFF
_LEVELS = 16  # 2^16 words of 4 bytes are folded at once: a chunk of the tensor reader
_BLOCK_BYTES = 4 << _LEVELS
_FEW_BYTES = 1024  # that many are done byte by byte before NumPy would have begun


def crc32c(data: bytes | memoryview, crc: int = 0) -> int:
    """Return the CRC-32C of ``data``, or of what ``crc`` was computed over followed by ``data``."""
    return _fastest()(data, crc)


@functools.cache
def _fastest() -> Callable[[bytes | memoryview, int], int]:
    try:
        import google_crc32c
    except ImportError:
        return crc32c_folding
    if google_crc32c.implementation != "c":  # its Python code takes a byte at a time
        return crc32c_folding
    extend = google_crc32c.extend

    def by_library(data: bytes | memoryview, crc: int) -> int:
        value: int = extend(crc, data if isinstance(data, bytes) else bytes(data))
        return value

    return by_library


def crc32c_bytewise(data: bytes | memoryview, crc: int = 0) -> int:
    """Return the same, byte by byte."""
    table, crc = _byte_table(), crc ^ _ALL
    for byte in bytes(data):
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ _ALL


def crc32c_folding(data: bytes | memoryview, crc: int = 0) -> int:
    """Return the same, block by block with NumPy; what is left over is done byte by byte."""
    content, position = memoryview(data).cast("B"), 0
    while len(content) - position > _FEW_BYTES:
        words = min((len(content) - position) // 4, 1 << _LEVELS)
        levels = words.bit_length() - 1
        size = 4 << levels
        crc = _folded(content[position : position + size], crc, levels)
        position += size
    return crc32c_bytewise(content[position:], crc)


def _folded(block: memoryview, crc: int, levels: int) -> int:
    """Return the CRC after a block of ``2 ** levels`` words."""
    import numpy as np

    tables = _tables()
    words = np.frombuffer(block, "<u4").copy()
    words[0] ^= np.uint32(crc ^ _ALL)
    for level in reversed(range(levels)):
        low, high = tables[level]
        halves = words[: 1 << level].view("<u2")
        moved = low.take(halves[0::2])
        moved ^= high.take(halves[1::2])
        moved ^= words[1 << level :]
        words = moved
    low, high = tables[0]
    last = int(words[0])
    return int(low[last & 0xFFFF]) ^ int(high[last >> 16]) ^ _ALL


@functools.cache
def _byte_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        remainder = byte
        for _ in range(8):
            remainder = (remainder >> 1) ^ (_POLYNOMIAL if remainder & 1 else 0)
        table.append(remainder)
    return tuple(table)


@functools.cache
def _tables() -> tuple[tuple[NDArray[np.uint32], NDArray[np.uint32]], ...]:
    """Return for every level what moving a word on by ``4 * 2 ** level`` bytes makes of its lower and of its upper half."""
    table, columns = _byte_table(), []
    for bit in range(32):
        remainder = 1 << bit
        for _ in range(4):
            remainder = table[remainder & 0xFF] ^ (remainder >> 8)
        columns.append(remainder)
    levels: list[tuple[NDArray[np.uint32], NDArray[np.uint32]]] = []
    for _ in range(_LEVELS):
        levels.append((_sums(columns[:16]), _sums(columns[16:])))
        columns = [_moved(columns, column) for column in columns]
    return tuple(levels)


def _sums(columns: list[int]) -> NDArray[np.uint32]:
    """Return at index i the sum of the columns whose bits are set in i."""
    import numpy as np

    table = np.zeros(1 << len(columns), np.uint32)
    for bit, column in enumerate(columns):
        table[1 << bit : 2 << bit] = table[: 1 << bit] ^ np.uint32(column)
    return table


def _moved(columns: list[int], word: int) -> int:
    moved = 0
    for bit, column in enumerate(columns):
        if word >> bit & 1:
            moved ^= column
    return moved
