"""What identifies a checkpoint, for its provenance and for knowing whether baked weights are up to date."""

from __future__ import annotations

from typing import Literal

from exporter.artifacts import Checkpoint, Digest
from exporter.locations import RemotePath
from exporter.tensors import checkpoint_digest

__all__ = ["identify", "lineage_key"]

SMALL_BYTES = 256_000_000
"""Up to this size a SHA-256 over every byte takes no time that matters."""


def identify(checkpoint: Checkpoint, how: Literal["auto", "contents", "file"] = "auto") -> Digest:
    """Return the digest of the checkpoint.

    ``auto`` is ``file``, what ``sha256sum`` says, up to 256 MB, and ``contents`` beyond. ``contents`` needs no tensor to be read
    where the container has a checksum for every one of them, as torch zip files do: it is taken over their pickle, and name, size
    and CRC-32 of every member. It stands for the bytes as far as a CRC-32 does, and baking verifies the CRC-32 of all that it
    copies. A container without checksums gets a digest over every byte all the same. A remote file is read whole for ``file`` alone;
    a container without checksums is then known by URL, size and version, as the server says them (``object``).

    Raises:
        CheckpointError: a file cannot be read (E103).
    """
    large = checkpoint.size_bytes > SMALL_BYTES or isinstance(checkpoint.path, RemotePath)
    by_contents = how == "contents" or (how == "auto" and large)
    return checkpoint.contents if by_contents and checkpoint.contents is not None else checkpoint_digest(checkpoint)


def lineage_key(digest: Digest) -> str:
    """Return the key under which lineage holds the digest: it says what was hashed."""
    return "checkpoint_sha256" if digest.of == "file" else f"checkpoint_{digest.of}_sha256"
