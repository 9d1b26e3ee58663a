"""A safetensors file as a checkpoint: a flat mapping of names to tensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from exporter.artifacts import Checkpoint, StorageRef, TensorRef
from exporter.tensors.safetensors_header import read_header

__all__ = ["read_safetensors"]


def read_safetensors(file: BinaryIO, path: Path) -> Checkpoint:
    """Return the checkpoint in the open safetensors file.

    Raises:
        CheckpointError: E114, the header breaks the format.
    """
    header = read_header(file, path)
    root = {}
    for entry in header.entries:
        storage = StorageRef(entry.name, path, entry.begin, entry.end - entry.begin)
        root[entry.name] = TensorRef(entry.dtype.name, entry.shape, _row_major(entry.shape), 0, storage)
    return Checkpoint(path, "safetensors", os.fstat(file.fileno()).st_size, root, metadata=header.metadata)


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
