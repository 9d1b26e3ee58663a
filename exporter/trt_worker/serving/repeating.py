"""Is a call the same twice? Its outputs are compared byte by byte; what held another byte each time before was not written at all.

A difference means that the engine's kernels race, or add up in another order each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from exporter.trt_worker.serving.binding import Array

__all__ = ["FILLS", "compare_runs", "same_bytes"]

FILLS = (0xFF, 0xA5)
"""Byte that outputs are filled with before the first call and before the second: NaN in each floating dtype, and another one."""


def same_bytes(first: Mapping[str, Array], second: Mapping[str, Array]) -> bool:
    """Whether two calls gave the same outputs, bit by bit."""
    return all(array.shape == second[name].shape and array.tobytes() == second[name].tobytes() for name, array in first.items())


def compare_runs(first: Mapping[str, Array], second: Mapping[str, Array]) -> dict[str, dict[str, int]]:
    """Return, for each output that is not the same in both calls, how many elements differ and how many of them nobody wrote.

    Args:
        first, second: outputs of calls whose outputs were filled with ``FILLS[0]`` and ``FILLS[1]`` before.
    """
    found: dict[str, dict[str, int]] = {}
    for name, array in first.items():
        other = second[name]
        if array.shape != other.shape:
            found[name] = {"differing": max(array.size, other.size), "unwritten": 0}
            continue
        one, two = _bytes_of(array), _bytes_of(other)
        differing = (one != two).any(1)
        if differing.any():
            unwritten = (one == FILLS[0]).all(1) & (two == FILLS[1]).all(1)
            found[name] = {"differing": int(differing.sum()), "unwritten": int(unwritten.sum())}
    return found


def _bytes_of(array: Array) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the bytes, one row for each element."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, array.dtype.itemsize)
