"""One output over one feed: are the arrays comparable at all, and as rows of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from exporter.runners.base import Array

__all__ = ["is_exact", "is_floating", "structure_mismatch", "values_by_sample"]

_SIGNIFICANT_BITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8, "float8_e4m3fn": 4, "float8_e5m2": 3}
_DECLARED_BITS = {**_SIGNIFICANT_BITS, "int8": 8, "fp8": 4}


def structure_mismatch(references: Sequence[Array], candidates: Sequence[Array], precision: str) -> str:
    """Return why the arrays cannot be compared number by number, empty where they can.

    Shapes must be equal. Integers and booleans must have the reference's dtype. Floating outputs must be floating and hold
    at least the digits of ``precision``, since the reference itself is float64 whatever the model's own dtype is.
    """
    for reference, candidate in zip(references, candidates, strict=True):
        if candidate.shape != reference.shape:
            return f"shape {candidate.shape}, expected {reference.shape}"
        name = candidate.dtype.name
        if is_floating(reference):
            if not is_floating(candidate):
                return f"dtype {name}, expected {precision}"
            if _SIGNIFICANT_BITS.get(name, 0) < _DECLARED_BITS[precision]:
                return f"dtype {name}, which holds fewer digits than the declared {precision}"
        elif candidate.dtype != reference.dtype and not (reference.dtype.kind == candidate.dtype.kind == "c"):
            return f"dtype {name}, expected {reference.dtype.name}"
    return ""


def is_floating(array: Array) -> bool:
    """Return whether ``array`` holds real floating numbers, those of ml_dtypes included."""
    return array.dtype.kind == "f" or array.dtype.name in _SIGNIFICANT_BITS


def is_exact(array: Array) -> bool:
    """Return whether ``array`` holds integers or booleans, which must be equal."""
    return not is_floating(array) and array.dtype.kind != "c"


def values_by_sample(arrays: Sequence[Array], batch: int) -> list[NDArray[np.float64]]:
    """Return blocks of shape ``(samples, elements)``; one block where all batches have the same shape per row.

    An array whose first axis is not the batch is one sample. Complex numbers become pairs.
    """
    blocks = []
    for array in arrays:
        real = array.view(array.real.dtype) if array.dtype.kind == "c" and array.ndim else array
        rows = batch if array.ndim and array.shape[0] == batch else 1
        blocks.append(np.asarray(real, np.float64).reshape(rows, -1 if real.size else 0))
    if len({block.shape[1] for block in blocks}) == 1:
        return [np.concatenate(blocks)]
    return blocks
