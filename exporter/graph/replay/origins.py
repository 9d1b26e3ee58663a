"""Where numbers of the traced graph come from: the state dict, the plan itself, or arithmetic that NumPy does as torch does, bit for bit."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from exporter.graph.algebra import Float64
from exporter.tensors import numpy_dtype

__all__ = ["CALLS", "Call", "Given", "Origin", "Stored", "evaluated", "given_of"]


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the network's state dict."""

    name: str


@dataclass(frozen=True, slots=True)
class Given:
    """Numbers that stand in the plan: a constant that is no weight."""

    dtype: str
    shape: tuple[int, ...]
    data: str
    """The bytes in row-major order, in base64."""


@dataclass(frozen=True, slots=True)
class Call:
    """Arithmetic on numbers, in float64: the factors of a frozen BatchNorm.

    Attributes:
        kind: a key of ``CALLS``.
        operands: origins and numbers.
        shape: of the result.
    """

    kind: str
    operands: tuple[Origin | float, ...]
    shape: tuple[int, ...]


Origin: TypeAlias = "Stored | Given | Call"

CALLS: Mapping[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.true_divide,
    "neg": np.negative,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "reciprocal": lambda x: 1.0 / x,
    "same": lambda x: x,
}
"""Calls that IEEE 754 defines to the last bit, so it does not matter who computes them; ``same`` gives another shape, or nothing new."""


def given_of(array: NDArray[Any]) -> Given:
    """Return numbers to be written into a plan."""
    return Given(array.dtype.name, tuple(array.shape), base64.b64encode(np.ascontiguousarray(array).tobytes()).decode())


def evaluated(origin: Origin | float, weights: Mapping[str, NDArray[Any]]) -> Float64:
    """Return the numbers of ``origin`` in float64."""
    if isinstance(origin, Stored):
        return weights[origin.name].astype(np.float64, copy=False)
    if isinstance(origin, Given):
        numbers = np.frombuffer(base64.b64decode(origin.data), dtype=numpy_dtype(origin.dtype))
        return numbers.reshape(origin.shape).astype(np.float64, copy=False)
    if isinstance(origin, Call):
        with np.errstate(all="ignore"):
            result = CALLS[origin.kind](*(evaluated(operand, weights) for operand in origin.operands))
        return np.asarray(result, dtype=np.float64).reshape(origin.shape)
    return np.asarray(origin, dtype=np.float64)
