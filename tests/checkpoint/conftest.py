"""Torch zip files made by hand, so that a test decides about every byte."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

WriteZip = Callable[..., Path]


@pytest.fixture
def write_zip(tmp_path: Path) -> WriteZip:
    """Write a zip file with ``data.pkl`` and storages as torch lays them out; ``extra`` members go in as they are."""

    def write(
        pickled: bytes, *, storages: Mapping[str, bytes] | None = None, extra: Mapping[str, bytes] | None = None, name: str = "made.pt"
    ) -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/byteorder", "little")
            for key, content in (storages or {}).items():
                archive.writestr(f"archive/data/{key}", content)
            for member, content in (extra or {}).items():
                archive.writestr(member, content)
            archive.writestr("archive/version", "3\n")
        return path

    return write
