"""Strict reading of a zip directory: one reading of the file, or it is refused.

Zip readers disagree about damaged or crafted archives, and so a scanner and a loader can see different members in one file.
Here the central directory and every local header must say the same; members must be stored uncompressed and lie one after
the other from the first byte of the file to the directory, without gaps, overlaps, prefix or suffix.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from exporter.errors import CheckpointError
from exporter.locations import Location
from exporter.tensors.sources import ByteSource

__all__ = ["Member", "Window", "read_directory"]

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")

_FLAG_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_FLAG_DESCRIPTOR = 1 << 3
_FLAG_UTF8 = 1 << 11
_METHOD_STORED, _METHOD_DEFLATED = 0, 8
_CODE = re.compile(rb"[^/]+/code/.+")
"""What torch.jit.save compresses: the program's text. Tensors and pickles are always stored as they are."""

_DESCRIPTOR_BYTES = 24
_MAX_DIRECTORY_BYTES = 1 << 26
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_SYSTEM_UNIX, _MODE_TYPE, _MODE_LINK = 3, 0o170000, 0o120000


@dataclass(frozen=True, slots=True)
class Window:
    """A run of bytes of an open file that is an archive by itself: the whole file, or one item of a larger one."""

    source: ByteSource
    start: int
    size_bytes: int

    @classmethod
    def of(cls, file: ByteSource) -> Window:
        """Return the whole of an open file."""
        return cls(file, 0, file.size_bytes)

    def read(self, count: int, at: int) -> bytes:
        """Return up to ``count`` bytes from byte ``at`` of the window on, none beyond its end."""
        return self.source.read(max(0, min(count, self.size_bytes - at)), self.start + at)


@dataclass(frozen=True, slots=True)
class Member:
    """One member; ``offset`` is the absolute position of its first byte, ``size_bytes`` what it takes in the file.

    ``inflated_bytes`` is the size of compressed text once unpacked, None for a stored member.
    """

    name: str
    offset: int
    size_bytes: int
    crc32: int
    inflated_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class _Central:
    name: bytes
    flags: int
    crc32: int
    size_bytes: int
    full_bytes: int
    method: int
    header_offset: int


class _Refused(ValueError):
    """A reason to refuse the archive."""


def read_directory(window: Window, path: Location, *, compressed_code: bool = False) -> dict[str, Member]:
    """Return the members of the zip archive in ``window``, by name, in the order of the file.

    With ``compressed_code`` members below ``code/`` may be compressed, as those of TorchScript are.

    Raises:
        CheckpointError: E107, saying what is wrong and with which member.
    """
    try:
        return _read(window, compressed_code=compressed_code)
    except _Refused as err:
        facts = {"file": path, "found": err, "expected": "a zip file as torch.save writes it"}
        raise CheckpointError("E107", "the zip archive of the checkpoint is damaged or was tampered with", facts=facts) from err


def _read(window: Window, *, compressed_code: bool) -> dict[str, Member]:
    count, start, size, end = _find_directory(window)
    if start + size != end:
        raise _Refused(f"a directory at bytes {start} to {start + size} that should end at {end}")
    if size > _MAX_DIRECTORY_BYTES:
        raise _Refused(f"a directory of {size} bytes")
    content = window.read(size, start)
    entries = sorted(_central_entries(content, count, compressed_code=compressed_code), key=lambda entry: entry.header_offset)
    window.source.expect(_header_range(window, entry) for entry in entries)
    members: dict[str, Member] = {}
    position = 0
    for entry in entries:
        name = _checked_name(entry)
        if name in members:
            raise _Refused(f"the member {name!r} twice")
        if entry.header_offset != position:
            kind = "bytes that belong to no member" if entry.header_offset > position else "an overlap"
            raise _Refused(f"{kind} before {name!r}, at byte {position}")
        members[name], position = _local_member(window, entry, name, start)
    if position != start:
        raise _Refused(f"bytes that belong to no member before the directory, at byte {position}")
    return members


def _header_range(window: Window, entry: _Central) -> tuple[int, int]:
    """Return where a local header stands, with the descriptor of the member before it."""
    begin = window.start + entry.header_offset
    return max(window.start, begin - _DESCRIPTOR_BYTES), begin + _LOCAL.size + len(entry.name)


def _find_directory(window: Window) -> tuple[int, int, int, int]:
    """Return the number of entries, where the directory starts, its size, and where it must end."""
    at = window.size_bytes - _END.size
    if at < 0:
        raise _Refused(f"{window.size_bytes} bytes, too few for a zip archive")
    magic, disk, start_disk, here, count, size, start, comment = _END.unpack(window.read(_END.size, at))
    if magic != b"PK\x05\x06" or comment:
        raise _Refused("no end of the directory at the end of the file: it is cut short, or something was appended")
    if disk or start_disk or here != count:
        raise _Refused("an archive in several parts")
    locator = window.read(_LOCATOR64.size, at - _LOCATOR64.size) if at >= _LOCATOR64.size else b""
    if not locator.startswith(b"PK\x06\x07"):
        return count, start, size, at
    _, disk, at64, disks = _LOCATOR64.unpack(locator)
    if disk or disks != 1 or at64 + _END64.size != at - _LOCATOR64.size:
        raise _Refused("a zip64 locator that points elsewhere than right before itself")
    magic, length, _, _, disk, start_disk, here64, count64, size64, start64 = _END64.unpack(window.read(_END64.size, at64))
    if magic != b"PK\x06\x06" or length != _END64.size - 12 or disk or start_disk or here64 != count64:
        raise _Refused("a damaged zip64 end of the directory")
    if count not in {count64, _MAX16} or size not in {size64, _MAX32} or start not in {start64, _MAX32}:
        raise _Refused("two ends of the directory that disagree")
    return count64, start64, size64, at64


def _central_entries(content: bytes, count: int, *, compressed_code: bool) -> Iterator[_Central]:
    position = seen = 0
    while position < len(content):
        if position + _CENTRAL.size > len(content):
            raise _Refused("a directory that ends in the middle of an entry")
        fields = _CENTRAL.unpack_from(content, position)
        magic, made_by, _, flags, method, _, _, crc32, packed, size, len_name, len_extra, len_comment, disk, _, attributes, offset = fields
        names_at = position + _CENTRAL.size
        position = names_at + len_name + len_extra + len_comment
        if magic != b"PK\x01\x02" or position > len(content) or disk:
            raise _Refused("a damaged entry in the directory")
        name = content[names_at : names_at + len_name]
        extra = content[names_at + len_name : names_at + len_name + len_extra]
        size, packed, offset = _widened(extra, size, packed, offset)
        if flags & _FLAG_ENCRYPTED:
            raise _Refused(f"the encrypted member {name!r}")
        deflated = compressed_code and method == _METHOD_DEFLATED and _CODE.fullmatch(name) is not None
        if not deflated and (method != _METHOD_STORED or packed != size):
            raise _Refused(f"the compressed member {name!r}; torch stores its members as they are")
        if made_by >> 8 == _SYSTEM_UNIX and (attributes >> 16) & _MODE_TYPE == _MODE_LINK:
            raise _Refused(f"the symbolic link {name!r}")
        seen += 1
        yield _Central(name, flags, crc32, packed, size, method, offset)
    if seen != count:
        raise _Refused(f"{seen} entries in a directory of {count}")


def _widened(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Replace the fields that say "see zip64" by the 64-bit ones of the extra field, which come in this order."""
    queue = iter(_zip64_values(extra))
    try:
        size, packed, offset = (next(queue) if field == _MAX32 else field for field in (size, packed, offset))
    except (StopIteration, RuntimeError) as err:
        raise _Refused("an entry that lacks its zip64 field") from err
    return size, packed, offset


def _zip64_values(extra: bytes) -> list[int]:
    """Return the numbers of the zip64 field among the extra fields, nothing where there is none."""
    values: list[int] = []
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        block = extra[position + 4 : position + 4 + length]
        if kind == 1:
            if values:
                raise _Refused("an entry with two zip64 fields")
            values = [value for (value,) in struct.iter_unpack("<Q", block[: len(block) // 8 * 8])]
        position += 4 + length
    return values


def _local_member(window: Window, entry: _Central, name: str, limit: int) -> tuple[Member, int]:
    """Return the member and the position after it; its local header and descriptor must agree with the directory."""
    header = window.read(_LOCAL.size, entry.header_offset)
    if len(header) < _LOCAL.size or not header.startswith(b"PK\x03\x04"):
        raise _Refused(f"no local header for {name!r} at byte {entry.header_offset}")
    _, _, flags, method, _, _, crc32, packed, size, len_name, len_extra = _LOCAL.unpack(header)
    local_name = window.read(len_name, entry.header_offset + _LOCAL.size)
    if local_name != entry.name or flags != entry.flags or method != entry.method:
        raise _Refused(f"a local header that disagrees with the directory about {name!r}")
    deferred = bool(flags & _FLAG_DESCRIPTOR)
    extra = window.read(len_extra, entry.header_offset + _LOCAL.size + len_name) if _MAX32 in {packed, size} else b""
    if _zip64_values(extra):
        size, packed, _ = _widened(extra, size, packed, 0)
    for here, there in ((crc32, entry.crc32), (packed, entry.size_bytes), (size, entry.full_bytes)):
        if here != there and not (deferred and here == 0) and not (here == _MAX32 and there >= _MAX32):
            raise _Refused(f"a local header that disagrees with the directory about {name!r}")
    start = entry.header_offset + _LOCAL.size + len_name + len_extra
    end = start + entry.size_bytes
    if end > limit:
        raise _Refused(f"the member {name!r} reaching into the directory")
    after = end + (_descriptor_size(window, entry, name, end) if deferred else 0)
    inflated = entry.full_bytes if entry.method == _METHOD_DEFLATED else None
    return Member(name, window.start + start, entry.size_bytes, entry.crc32, inflated), after


def _descriptor_size(window: Window, entry: _Central, name: str, at: int) -> int:
    block = window.read(_DESCRIPTOR_BYTES, at)
    for form in (struct.Struct("<4sLLL"), struct.Struct("<4sLQQ")):
        if len(block) >= form.size and form.unpack_from(block) == (b"PK\x07\x08", entry.crc32, entry.size_bytes, entry.full_bytes):
            return form.size
    raise _Refused(f"a data descriptor that disagrees with the directory about {name!r}")


def _checked_name(entry: _Central) -> str:
    try:
        name = entry.name.decode("utf-8" if entry.flags & _FLAG_UTF8 else "ascii")
    except UnicodeDecodeError as err:
        raise _Refused(f"a member whose name is no text: {entry.name[:80]!r}") from err
    steps = name.split("/")
    if "" in steps or "." in steps or ".." in steps or "\\" in name or ":" in steps[0] or not name.isprintable():
        raise _Refused(f"a member with the name {name[:80]!r}")
    return name
