"""A tensor whose elements stand one after the other in a file."""

from __future__ import annotations

from exporter.artifacts import StorageRef, TensorRef
from exporter.locations import Location

__all__ = ["row_major", "whole_tensor"]


def whole_tensor(
    name: str, path: Location, offset: int, size_bytes: int, dtype: str, shape: tuple[int, ...], *, crc32c: int | None = None
) -> TensorRef:
    """Return the tensor of ``shape`` in the ``size_bytes`` bytes from ``offset`` on."""
    return TensorRef(dtype, shape, row_major(shape), 0, StorageRef(name, path, offset, size_bytes, crc32c=crc32c))


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a tensor whose last axis moves fastest."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return tuple(strides)
