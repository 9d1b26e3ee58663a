"""LevelDB's sorted tables, as TensorFlow writes the index of a checkpoint: keys in order, in blocks with a checksum each.

A table ends with a footer that names the block of blocks; a block holds entries whose keys share the beginning of the key before,
the places where a key is whole again, and its own CRC-32C, masked. TensorFlow does not compress the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

from exporter.checkpoint.protobuf import Malformed, read_varint
from exporter.tensors.crc32c import crc32c

__all__ = ["FOOTER_BYTES", "TABLE_MAGIC", "Compressed", "read_table", "unmasked"]

TABLE_MAGIC = bytes.fromhex("57fb808b247547db")
"""The last bytes of a table."""
FOOTER_BYTES = 48

_TRAILER_BYTES = 5  # type and checksum
_MAX_ENTRIES = 200_000
_MAX_KEY_BYTES = 4096
_MAX_KEYS_BYTES = 1 << 26
"""Of all keys together: they share their beginnings in the file, not in memory."""


class Compressed(Malformed):
    """A block is compressed."""


def unmasked(masked: int) -> int:
    """Return the CRC-32C that LevelDB and TensorFlow store as ``masked``, so that a CRC over bytes with CRCs in them is no special case."""
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def read_table(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield every key with its value, in the order of the keys, which rises strictly.

    Raises:
        Malformed: the table is damaged, or holds more than any trainer writes.
        Compressed: a block is compressed.
    """
    end = len(table) - FOOTER_BYTES
    if end < 0 or table[-len(TABLE_MAGIC) :] != TABLE_MAGIC:
        raise Malformed("no footer of a table at the end")
    footer = table[end:]
    _, _, position = _handle(footer, 0)  # of the block of filters, which TensorFlow does not write
    start, size, _ = _handle(footer, position)
    last: bytes | None = None
    count, reached, size_of_keys = 0, 0, 0
    for bound, handle in _entries(_block(table[:end], start, size, "the block of blocks")):
        start, size, behind = _handle(handle, 0)
        if start < reached or behind != len(handle):
            raise Malformed(f"the block at byte {start} out of order")
        reached = start + size + _TRAILER_BYTES
        for key, value in _entries(_block(table[:end], start, size, "the block")):
            if last is not None and key <= last:
                raise Malformed(f"the key {key[:80]!r} behind {last[:80]!r}")
            last = key
            count += 1
            size_of_keys += len(key)
            if count > _MAX_ENTRIES or size_of_keys > _MAX_KEYS_BYTES:
                raise Malformed(f"more than {_MAX_ENTRIES} entries, or keys of more than {_MAX_KEYS_BYTES} bytes")
            yield key, value
        if last is not None and last > bound:
            raise Malformed(f"the key {last[:80]!r} in a block that ends with {bound[:80]!r}")


def _handle(data: bytes, position: int) -> tuple[int, int, int]:
    """Return where a block begins, its size, and the position behind its handle."""
    start, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return start, size, position


def _block(table: bytes, start: int, size: int, what: str) -> bytes:
    """Return the content of a block, its checksum verified."""
    if start + size + _TRAILER_BYTES > len(table):
        raise Malformed(f"{what} at bytes {start} to {start + size}, beyond the {len(table)} bytes of blocks")
    end = start + size
    found, expected = crc32c(table[start : end + 1]), unmasked(int.from_bytes(table[end + 1 : end + _TRAILER_BYTES], "little"))
    if found != expected:
        raise Malformed(f"{what} at byte {start} with the CRC-32C {found:08x}, where {expected:08x} is written")
    if table[end]:
        raise Compressed(f"{what} at byte {start}, compressed by method {table[end]}")
    return table[start:end]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(block) < 4:
        raise Malformed(f"a block of {len(block)} bytes")
    num_restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * num_restarts
    if num_restarts < 1 or end < 0:
        raise Malformed(f"a block of {len(block)} bytes with {num_restarts} places where a key is whole")
    restarts = {int.from_bytes(block[place : place + 4], "little") for place in range(end, len(block) - 4, 4)}
    if len(restarts) != num_restarts or max(restarts) > end:
        raise Malformed("places where a key is whole outside their block, or twice")
    entries = block[:end]
    key, position = b"", 0
    while position < end:
        begin = position
        shared, position = read_varint(entries, position)
        added, position = read_varint(entries, position)
        size, position = read_varint(entries, position)
        if shared > len(key) or shared + added > _MAX_KEY_BYTES or added + size > end - position:
            raise Malformed(f"an entry at byte {begin} of its block that shares {shared} bytes and has {added} and {size} of its own")
        if begin in restarts:
            restarts.discard(begin)
            if shared:
                raise Malformed(f"a key at byte {begin} of its block that is not whole")
        key = key[:shared] + entries[position : position + added]
        yield key, entries[position + added : position + added + size]
        position += added + size
    if restarts - {end, 0}:
        raise Malformed("places where a key is whole, with no key")
