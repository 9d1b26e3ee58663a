"""The checksums that containers have of a storage, and CRC-32 from Intel's ISA-L, which is several times as fast as zlib's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from exporter.artifacts import StorageRef
from exporter.tensors.crc32c import crc32c

try:
    from isal.isal_zlib import crc32
except ImportError:  # no wheel for this machine; the numbers are the same
    from zlib import crc32

__all__ = ["Checksum", "checksum_of", "crc32"]

Checksum: TypeAlias = "tuple[str, Callable[[memoryview, int], int], int]"
"""Its name, the function that goes on with it, and its value."""


def checksum_of(storage: StorageRef) -> Checksum | None:
    """Return the checksum that the container has of the storage, None where it has none."""
    if storage.crc32 is not None:
        return "CRC-32", crc32, storage.crc32
    if storage.crc32c is not None:
        return "CRC-32C", crc32c, storage.crc32c
    return None
