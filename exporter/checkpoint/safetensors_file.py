"""A safetensors file as a checkpoint: a flat mapping of names to tensors."""

from __future__ import annotations

from exporter.artifacts import Checkpoint, StorageRef, TensorRef
from exporter.locations import Location
from exporter.tensors.safetensors_header import read_header
from exporter.tensors.sources import ByteSource

__all__ = ["read_safetensors"]


def read_safetensors(file: ByteSource, path: Location) -> Checkpoint:
    """Return the checkpoint in the open safetensors file.

    Raises:
        CheckpointError: E114, the header breaks the format.
    """
    header = read_header(file, path)
    root = {}
    for entry in header.entries:
        storage = StorageRef(entry.name, path, entry.begin, entry.end - entry.begin)
        root[entry.name] = TensorRef(entry.dtype.name, entry.shape, _row_major(entry.shape), 0, storage)
    return Checkpoint(path, "safetensors", file.size_bytes, root, metadata=header.metadata)


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
