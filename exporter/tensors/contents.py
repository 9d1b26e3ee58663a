"""The ``contents`` digest of a safetensors file: its header and the CRC-32 of every tensor, in the order of the file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from exporter.artifacts import Digest
from exporter.errors import ArtifactError
from exporter.tensors.checksums import crc32
from exporter.tensors.reading import CHUNK_BYTES
from exporter.tensors.safetensors_header import read_header
from exporter.tensors.sources import open_regular

__all__ = ["contents_digest", "digest_of_contents"]


def contents_digest(header: bytes, checksums: Iterable[int]) -> Digest:
    """Return the digest for a header as it stands in the file, and the tensors' CRC-32 in the order of their bytes."""
    digest = hashlib.sha256(b"exporter safetensors contents 1\0")
    digest.update(header)
    for checksum in checksums:
        digest.update(checksum.to_bytes(4, "little"))
    return Digest(digest.hexdigest(), "contents")


def digest_of_contents(path: Path) -> Digest:
    """Return the digest of the safetensors file at ``path``, every byte of it read once.

    Raises:
        CheckpointError: it is missing (E101), no regular file (E102), or no safetensors file (E114).
        ArtifactError: it became shorter while it was read (E723).
    """
    with open_regular(path) as file:
        table = read_header(file, path)
        begin = table.entries[0].begin if table.entries else file.size_bytes
        header = file.read(begin, 0)
        buffer = memoryview(bytearray(CHUNK_BYTES))
        checksums = []
        for entry in table.entries:
            position, checksum = entry.begin, 0
            while position < entry.end:
                count = file.read_into(buffer[: min(len(buffer), entry.end - position)], position)
                if not count:
                    raise ArtifactError("E723", "an artefact differs from its record", facts={"file": path, "found": f"{position} bytes"})
                checksum = crc32(buffer[:count], checksum)
                position += count
            checksums.append(checksum)
    return contents_digest(header, checksums)
