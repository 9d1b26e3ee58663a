"""CRC-32, as zip files hold it: from Intel's ISA-L, which is several times as fast, where it is installed, else from zlib."""

from __future__ import annotations

try:
    from isal.isal_zlib import crc32
except ImportError:  # no wheel for this machine; the numbers are the same
    from zlib import crc32

__all__ = ["crc32"]
