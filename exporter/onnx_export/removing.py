"""Remove a model that was written for the time being: the file, its record and its external data."""

from __future__ import annotations

from pathlib import Path

from exporter.records import record_path

__all__ = ["remove_onnx"]


def remove_onnx(path: Path) -> None:
    """Remove the model at ``path`` and what was written with it; nothing happens where there is none."""
    for part in (path, record_path(path), *path.parent.glob(f"{path.stem}.????????????????.data")):
        part.unlink(missing_ok=True)
