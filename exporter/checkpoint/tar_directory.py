"""Strict reading of a tar archive: plain files under plain names, one after the other, or it is refused.

Extended headers may say when and whose a file was; one that changes a name or a size gives the archive a second reading.
"""

from __future__ import annotations

from exporter.errors import CheckpointError
from exporter.locations import Location
from exporter.tensors.sources import ByteSource

__all__ = ["TAR_MAGIC", "read_tar"]

TAR_MAGIC = b"ustar"
"""At byte 257 of a header."""

_BLOCK = 512
_FILE, _EXTENDED = {b"0", b"\x00"}, b"x"
_HARMLESS = {"mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment"}
_MAX_MEMBERS = 16
_MAX_EXTENDED_BYTES = 1 << 16


class _Refused(ValueError):
    """A reason to refuse the archive."""


def read_tar(file: ByteSource, path: Location) -> dict[str, tuple[int, int]]:
    """Return name -> where its first byte is and where it ends, for every file in the tar archive.

    Raises:
        CheckpointError: E133, saying what is wrong and at which byte.
    """
    try:
        return _read(file, file.size_bytes)
    except _Refused as err:
        facts = {"file": path, "found": err, "expected": "a tar archive as torch.save wrote it"}
        raise CheckpointError("E133", "the tar archive of the checkpoint is damaged or was tampered with", facts=facts) from err


def _read(file: ByteSource, size: int) -> dict[str, tuple[int, int]]:
    members: dict[str, tuple[int, int]] = {}
    position = headers = 0
    while True:
        block = file.read(_BLOCK, position)
        if len(block) < _BLOCK:
            raise _Refused(f"an end at byte {position + len(block)}, in the middle of a header")
        if not any(block):
            break
        name, kind, length = _header(block, position)
        begin, end = position + _BLOCK, position + _BLOCK + length
        position = begin + -(-length // _BLOCK) * _BLOCK
        headers += 1
        if position > size or headers > 2 * _MAX_MEMBERS:
            raise _Refused(f"{name!r} of {length} bytes at byte {begin} of {size}" if position > size else "too many members")
        if any(file.read(position - end, end)):
            raise _Refused(f"bytes that belong to no member, at byte {end}")
        if kind == _EXTENDED:
            _check_extended(file.read(min(length, _MAX_EXTENDED_BYTES + 1), begin))
        elif kind not in _FILE:
            raise _Refused(f"{name!r}, which is no plain file")
        elif name in members:
            raise _Refused(f"the member {name!r} twice")
        else:
            members[name] = (begin, end)
    _check_padding(file, position, size)
    return members


def _header(block: bytes, position: int) -> tuple[str, bytes, int]:
    """Return name, kind and length of a member."""
    if block[257:262] != TAR_MAGIC:
        raise _Refused(f"no header of a member at byte {position}")
    if _octal(block[148:156]) != sum(block[:148]) + 8 * 32 + sum(block[156:]):
        raise _Refused(f"a wrong checksum of the header at byte {position}")
    raw = block[:100].partition(b"\x00")[0]
    if any(block[345:500]) or not raw.isascii() or b"\\" in raw:
        raise _Refused(f"a member with the name {raw[:80]!r}")
    name, kind = raw.decode(), block[156:157]
    if kind != _EXTENDED and (not name.isprintable() or name in {"", ".", ".."} or "/" in name):
        raise _Refused(f"a member with the name {name[:80]!r}")
    return name, kind, _octal(block[124:136])


def _octal(field: bytes) -> int:
    digits = field.strip(b" \x00")
    if not digits or set(digits) - set(b"01234567"):
        raise _Refused(f"the number {field!r} in a header")
    return int(digits, 8)


def _check_extended(content: bytes) -> None:
    """Refuse an extended header (lines ``length key=value``) that says more than times and owners."""
    if len(content) > _MAX_EXTENDED_BYTES:
        raise _Refused("an extended header of more than 64 KiB")
    while content:
        length, space, _ = content.partition(b" ")
        size = int(length) if length.isdigit() and len(length) < 6 else 0
        key, equals, _ = content[len(length) + 1 : size].partition(b"=")
        if not space or not equals or not content[:size].endswith(b"\n") or len(content) < size:
            raise _Refused("a damaged extended header")
        if key.decode("ascii", "replace") not in _HARMLESS:
            raise _Refused(f"an extended header that changes {key[:40]!r}")
        content = content[size:]


def _check_padding(file: ByteSource, position: int, size: int) -> None:
    """Refuse an end that is no two empty blocks, and anything but zeros behind it."""
    if size - position < 2 * _BLOCK or size - position > 64 * _BLOCK:
        raise _Refused(f"{size - position} bytes at its end")
    if any(file.read(size - position, position)):
        raise _Refused(f"bytes that belong to no member, behind byte {position}")
