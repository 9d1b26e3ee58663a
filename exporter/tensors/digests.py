"""The digest of a checkpoint: of its one file, or of all the files that it is made of."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from exporter.artifacts import Checkpoint, Digest
from exporter.errors import CheckpointError
from exporter.files import digest_of_file
from exporter.locations import Location, RemotePath
from exporter.tensors.sources import open_regular

__all__ = ["checkpoint_digest", "object_digest"]

_CHUNK_BYTES = 1 << 20


def checkpoint_digest(checkpoint: Checkpoint) -> Digest:
    """Return the SHA-256 of the checkpoint's bytes.

    For several files it is the SHA-256 of the text that ``sha256sum`` prints for them, named relative to their folder and
    sorted by name.

    Raises:
        CheckpointError: a file cannot be read any more (E103).
    """
    if not checkpoint.files:
        return _digest(checkpoint.path)
    lines = sorted((name, _digest(path).hex) for name, path in _named(checkpoint.files).items())
    return Digest(hashlib.sha256("".join(f"{sha256}  {name}\n" for name, sha256 in lines).encode()).hexdigest())


def object_digest(checkpoint: Checkpoint) -> Digest:
    """Return what identifies a remote checkpoint by what the server says: URL, size and version of each of its objects."""
    digest = hashlib.sha256(b"exporter remote object 1\0")
    for path in checkpoint.files or (checkpoint.path,):
        digest.update(f"{path}\0{path.version if isinstance(path, RemotePath) else ''}\0".encode())
    digest.update(str(checkpoint.size_bytes).encode())
    return Digest(digest.hexdigest(), "object")


def _named(files: tuple[Location, ...]) -> dict[str, Location]:
    local = [path for path in files if isinstance(path, Path)]
    if len(local) < len(files):
        return {path.name: path for path in files}
    folder = Path(os.path.commonpath([path.parent for path in local]))
    return {path.relative_to(folder).as_posix(): path for path in local}


def _digest(path: Location) -> Digest:
    if isinstance(path, RemotePath):
        return _digest_of_object(path)
    try:
        return digest_of_file(path)
    except OSError as err:
        raise CheckpointError("E103", "the checkpoint cannot be read", facts={"file": path, "found": err.strerror or err}) from err


def _digest_of_object(path: RemotePath) -> Digest:
    digest, position = hashlib.sha256(), 0
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with open_regular(path) as file:
        file.expect([(0, file.size_bytes)])
        while position < file.size_bytes and (count := file.read_into(buffer, position)):
            digest.update(buffer[:count])
            position += count
    return Digest(digest.hexdigest(), "file")
