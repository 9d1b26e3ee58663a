"""Files written whole or not at all, and digests.

Every output goes to a temporary name in the folder of the target, is synced, and takes the target's name by a rename; then
the folder is synced. A kill at any moment leaves the old file or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from exporter.artifacts import Digest
from exporter.errors import ArtifactError

__all__ = ["atomic_write", "digest_of_file", "digest_of_settings", "write_bytes", "write_json"]

_CHUNK = 1 << 20
_TEMPORARY_SUFFIX = ".exporter-tmp"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; on success it becomes ``path``, on any error it is gone.

    Raises:
        ArtifactError: the folder cannot be written to, or writing failed; ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}{_TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError as err:
        raise _cannot_write(path, err) from err
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as err:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        if isinstance(err, OSError):
            raise _cannot_write(path, err) from err
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    with atomic_write(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write ``value`` as indented JSON with sorted keys, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode())


def digest_of_file(path: Path) -> Digest:
    """Return the SHA-256 of the file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return Digest(digest.hexdigest(), "file")


def digest_of_settings(value: Any) -> Digest:  # noqa: ANN401 - any JSON value
    """Return the SHA-256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return Digest(hashlib.sha256(text.encode()).hexdigest(), "settings")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, err: OSError) -> ArtifactError:
    return ArtifactError("E711", "a file could not be written; nothing was changed", facts={"file": path, "found": err.strerror or err})
