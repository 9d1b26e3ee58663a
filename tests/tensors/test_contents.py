"""The digest of the contents of a safetensors file depends on every byte of it."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from exporter.errors import CheckpointError
from exporter.tensors.checksums import crc32
from exporter.tensors.contents import digest_of_contents
from exporter.tensors.reading import CHUNK_BYTES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three tensors, one of them longer than a chunk and one empty."""
    arrays = {"a": np.arange(CHUNK_BYTES // 4 + 5, dtype="f4"), "b": np.ones(3, "f8"), "empty": np.zeros(0, "f4")}
    save_file(arrays, tmp_path / "x.safetensors", {"from": "a test"})
    return tmp_path / "x.safetensors"


def test_checksums_are_those_of_zlib() -> None:
    """Whichever library computes them, they are CRC-32 as zip files hold it, also when continued."""
    content = bytes(range(256)) * 40
    assert crc32(content) == zlib.crc32(content)
    assert crc32(content[77:], crc32(content[:77])) == zlib.crc32(content)


@pytest.mark.parametrize("position", [9, -1, -30, -CHUNK_BYTES], ids=["header", "last byte", "second tensor", "first chunk"])
def test_every_byte_counts(position: int, path: Path) -> None:
    """One bit anywhere gives another digest, or no safetensors file any more."""
    before = digest_of_contents(path)
    assert before.of == "contents"
    assert digest_of_contents(path) == before
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    try:
        assert digest_of_contents(path) != before
    except CheckpointError as err:
        assert position == 9
        assert err.code == "E114"  # noqa: PT017 - either outcome is right
