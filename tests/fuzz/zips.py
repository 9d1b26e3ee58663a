"""Zip archives taken apart and built again byte by byte, and fields of their directory that lie."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from dataclasses import dataclass

from tests.fuzz.words import NUMBERS

__all__ = ["Part", "build", "lie", "split"]

_CENTRAL, _LOCAL, _END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"
_FIELDS = {
    _LOCAL: ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)),
    _CENTRAL: ((4, 2), (6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (34, 2), (38, 4), (42, 4)),
    _END: ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
    b"PK\x06\x06": ((4, 8), (16, 4), (20, 4), (24, 8), (32, 8), (40, 8), (48, 8)),
    b"PK\x06\x07": ((4, 4), (8, 8), (16, 4)),
}
"""Signature -> offset and size of each field."""


@dataclass(slots=True)
class Part:
    """One member: its bytes as they stand in the archive."""

    name: str
    content: bytes
    method: int = zipfile.ZIP_STORED

    @property
    def is_compressed(self) -> bool:
        """Whether ``content`` is deflated."""
        return self.method == zipfile.ZIP_DEFLATED

    @property
    def unpacked(self) -> bytes:
        """What it holds; as it is where it cannot be unpacked."""
        if not self.is_compressed:
            return self.content
        try:
            return zlib.decompressobj(-15).decompress(self.content, 1 << 20)
        except zlib.error:
            return self.content


def split(data: bytes) -> list[Part]:
    """Return the members of an archive; none where Python cannot read it."""
    parts = []
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist():
                begin = info.header_offset + 30 + sum(struct.unpack_from("<HH", data, info.header_offset + 26))
                parts.append(Part(info.filename, data[begin : begin + info.compress_size], info.compress_type))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, struct.error, IndexError):
        return []
    return parts


def build(parts: list[Part], *, zip64: bool = False, padding: int = 0) -> bytes:
    """Return the archive of ``parts``, with right sizes and checksums."""
    body, directory = bytearray(), bytearray()
    for part in parts:
        name, unpacked = part.name.encode("utf-8", "surrogatepass")[:65000], part.unpacked
        numbers = (zlib.crc32(unpacked), len(part.content), len(unpacked))
        extra = struct.pack("<HH", 0x4246, padding) + bytes(padding) if padding else b""
        flags = 0 if part.name.isascii() else 1 << 11
        offset = len(body)
        body += struct.pack("<4s5H3L2H", _LOCAL, 20, flags, part.method, 0, 0, *numbers, len(name), len(extra)) + name + extra + part.content
        wide = struct.pack("<HHQ", 1, 8, offset) if zip64 else b""
        fields = (len(name), len(wide), 0, 0, 0, 0, 0xFFFFFFFF if zip64 else offset)
        directory += struct.pack("<4s6H3L5H2L", _CENTRAL, 20, 20, flags, part.method, 0, 0, *numbers, *fields) + name + wide
    end = b""
    count, start = len(parts), len(body)
    if zip64:
        end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), start)
        end += struct.pack("<4sLQL", b"PK\x06\x07", 0, start + len(directory), 1)
    return bytes(body + directory) + end + struct.pack("<4s4H2LH", _END, 0, 0, count, count, len(directory), start, 0)


def lie(content: bytes, rng: random.Random) -> bytes:
    """Return the archive with one field changed, in one place or wherever the field stands."""
    signature = rng.choice(list(_FIELDS))
    places = [at for at in range(len(content) - 22) if content.startswith(signature, at)] or [len(content) - 22]
    offset, size = rng.choice(_FIELDS[signature])
    value = (rng.choice((rng.choice(NUMBERS), len(content), rng.randrange(1 << 16))) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    changed = bytearray(content)
    for at in places if rng.random() < 0.3 else [rng.choice(places)]:
        changed[at + offset : at + offset + size] = value
    return bytes(changed)
