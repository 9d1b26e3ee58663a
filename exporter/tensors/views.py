"""Arithmetic of strided views; strides and offsets count elements."""

from __future__ import annotations

from typing import Protocol

from exporter.artifacts import TensorRef
from exporter.tensors.dtypes import DTYPES

__all__ = ["MAX_DIMENSIONS", "is_contiguous", "num_spanned", "size_bytes"]

MAX_DIMENSIONS = 64
"""More axes than torch or NumPy allow; a longer shape is refused before it is multiplied out."""


class HasElements(Protocol):
    """Anything that has elements of one dtype."""

    @property
    def dtype(self) -> str:
        """torch's name of the dtype."""

    @property
    def num_elements(self) -> int:
        """Number of elements."""


def size_bytes(ref: HasElements) -> int:
    """Return the bytes that the tensor's elements take when written one after the other."""
    return ref.num_elements * DTYPES[ref.dtype].size_bytes


def num_spanned(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Return how many elements of storage a view reaches over, from its first to its last element; 0 where it is empty."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def is_contiguous(ref: TensorRef) -> bool:
    """Return whether the elements stand in row-major order without gaps in one storage; axes of length 1 do not matter."""
    if ref.shards:
        return False
    if 0 in ref.shape:
        return True
    expected = 1
    for size, stride in zip(reversed(ref.shape), reversed(ref.strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
