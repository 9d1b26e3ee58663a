"""A checkpoint of several files as one run of bytes, which is what a fuzzer hands about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["MAGIC", "pack", "pack_folder", "unpack", "write"]

MAGIC = b"PARCEL\n"
_MAX_FILES = 12


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return ``files``, relative path -> content, as one run of bytes."""
    parts = [MAGIC]
    for name, content in files.items():
        encoded = name.encode("utf-8", "surrogatepass")[:255]
        parts += [bytes([len(encoded)]), encoded, len(content).to_bytes(4, "little"), content]
    return b"".join(parts)


def pack_folder(folder: Path) -> bytes:
    """Return the files below ``folder``, in the order of their names."""
    return pack({path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()})


def unpack(data: bytes) -> dict[str, bytes]:
    """Return what ``data`` holds, as much as can be made out of it; a last file may be cut short."""
    files: dict[str, bytes] = {}
    position = len(MAGIC)
    while position < len(data) and len(files) < _MAX_FILES:
        length = data[position]
        name = data[position + 1 : position + 1 + length].decode("utf-8", "replace")
        position += 1 + length
        size = int.from_bytes(data[position : position + 4], "little")
        files[name] = data[position + 4 : position + 4 + size]
        position += 4 + size
    return files


def write(data: bytes, folder: Path) -> Path:
    """Write ``data`` below ``folder``; return the file, or the folder where it is a parcel of several."""
    if not data.startswith(MAGIC):
        path = folder / "input"
        path.write_bytes(data)
        return path
    root = folder / "input.d"
    root.mkdir()
    for name, content in unpack(data).items():
        steps = name.split("/")
        if len(steps) > 3 or any(step in {"", ".", ".."} or "\0" in step or len(step) > 80 for step in steps):
            continue  # no file system holds such a name; names inside of files are another matter
        path = root / name
        if not any(parent.is_file() for parent in path.parents) and not path.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root
