"""The digest of a checkpoint: of its one file, or of all the files that it is made of."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from exporter.artifacts import Checkpoint, Digest
from exporter.errors import CheckpointError
from exporter.files import digest_of_file

__all__ = ["checkpoint_digest"]


def checkpoint_digest(checkpoint: Checkpoint) -> Digest:
    """Return the SHA-256 of the checkpoint's bytes.

    For several files it is the SHA-256 of the text that ``sha256sum`` prints for them, named relative to their folder and
    sorted by name.

    Raises:
        CheckpointError: a file cannot be read any more (E103).
    """
    if not checkpoint.files:
        return _digest(checkpoint.path)
    folder = Path(os.path.commonpath([path.parent for path in checkpoint.files]))
    lines = sorted((path.relative_to(folder).as_posix(), _digest(path).hex) for path in checkpoint.files)
    return Digest(hashlib.sha256("".join(f"{sha256}  {name}\n" for name, sha256 in lines).encode()).hexdigest())


def _digest(path: Path) -> Digest:
    try:
        return digest_of_file(path)
    except OSError as err:
        raise CheckpointError("E103", "the checkpoint cannot be read", facts={"file": path, "found": err.strerror or err}) from err
