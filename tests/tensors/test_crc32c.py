"""CRC-32C: published values, and three ways to compute it that must agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exporter.artifacts import StorageRef, TensorRef
from exporter.errors import CheckpointError
from exporter.tensors import TensorReader, read_tensor
from exporter.tensors.crc32c import crc32c, crc32c_bytewise, crc32c_folding

WAYS = {"fastest": crc32c, "byte by byte": crc32c_bytewise, "folding": crc32c_folding}
PUBLISHED = {
    "check value": (b"123456789", 0xE3069283),
    "zeros (RFC 3720)": (bytes(32), 0x8A9136AA),
    "ones (RFC 3720)": (b"\xff" * 32, 0x62A8AB43),
    "rising (RFC 3720)": (bytes(range(32)), 0x46DD794E),
    "nothing": (b"", 0),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", PUBLISHED)
def test_published_values(way: str, case: str) -> None:
    """Each way gives the published value."""
    content, expected = PUBLISHED[case]
    assert WAYS[way](content, 0) == expected


@pytest.mark.parametrize("size", [1, 1024, 1025, 1031, 65536, (1 << 18) + 13])
def test_the_ways_agree(size: int) -> None:
    """Whole blocks, remainders, and a value that goes on from an earlier one."""
    content = np.random.default_rng(size).bytes(size)
    expected = crc32c_bytewise(content)
    assert crc32c_folding(content) == expected
    assert crc32c(content) == expected
    cut = size // 3
    for way in WAYS.values():
        assert way(memoryview(content)[cut:], way(content[:cut], 0)) == expected


@pytest.mark.parametrize("whole", [True, False])
def test_a_reader_verifies_it(tmp_path: Path, whole: bool) -> None:
    """A storage with a CRC-32C is verified over all of its bytes, also where a part of it is asked for."""
    content = np.arange(1000, dtype="<f4").tobytes()
    path = tmp_path / "data"
    path.write_bytes(b"head" + content)
    ref = TensorRef("float32", (1000,) if whole else (10,), (1,), 0 if whole else 5, StorageRef("a", path, 4, 4000, crc32c=crc32c(content)))
    assert read_tensor(ref).tolist() == (list(range(1000)) if whole else list(range(5, 15)))
    path.write_bytes(b"head" + content[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match="CRC-32C") as refused:
        read_tensor(ref)
    assert refused.value.code == "E109"
    with TensorReader() as reader, pytest.raises(CheckpointError, match="CRC-32C"):
        for _ in reader.whole_chunks(ref.storage, lambda: memoryview(bytearray(1 << 10))):
            pass
