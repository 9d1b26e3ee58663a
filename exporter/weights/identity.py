"""What identifies a checkpoint, for its provenance and for knowing whether baked weights are up to date."""

from __future__ import annotations

from typing import Literal

from exporter.artifacts import Checkpoint, Digest
from exporter.tensors import checkpoint_digest

__all__ = ["identify", "lineage_key"]


def identify(checkpoint: Checkpoint, how: Literal["contents", "file"] = "contents") -> Digest:
    """Return the digest of the checkpoint.

    ``contents`` needs no tensor to be read where the container has a checksum for every one of them, as torch zip files do: it is
    taken over their pickle, and name, size and CRC-32 of every member. It stands for the bytes as far as a CRC-32 does, and baking
    verifies the CRC-32 of all that it copies. A container without checksums gets a digest over every byte all the same.

    Raises:
        CheckpointError: a file cannot be read (E103).
    """
    return checkpoint.contents if how == "contents" and checkpoint.contents is not None else checkpoint_digest(checkpoint)


def lineage_key(digest: Digest) -> str:
    """Return the key under which lineage holds the digest: it says what was hashed."""
    return "checkpoint_contents_sha256" if digest.of == "contents" else "checkpoint_sha256"
