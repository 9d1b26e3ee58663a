"""The algebra of folding, on float64 arrays; rounding to the weights' own dtype happens once, at the very end.

A BatchNorm in eval mode is ``BN(z) = s z + t`` per channel, with

    s = gamma / sqrt(var + eps)        t = beta - mean s        (gamma = 1 and beta = 0 where it has no affine part)
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

__all__ = ["Float64", "affine_from_batch_norm", "rounded_once", "scaled_linear"]

Float64 = NDArray[np.float64]

_FORMATS: dict[str, Any] = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def affine_from_batch_norm(gamma: Float64 | None, beta: Float64 | None, mean: Float64, var: Float64, eps: float) -> tuple[Float64, Float64]:
    """Return ``(s, t)``, each of shape ``(channels,)``.

    A variance that is not above ``-eps`` gives values that are not finite, as it does in the BatchNorm itself.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        s = 1.0 / np.sqrt(var + eps)
        if gamma is not None:
            s = gamma * s
        t = -mean * s
        return s, (t if beta is None else beta + t)


def scaled_linear(weight: Float64, bias: Float64 | None, s: Float64, t: Float64, *, axis: int) -> tuple[Float64, Float64]:
    """Return ``W' = s W`` along ``axis`` of ``weight`` and ``b' = s b + t`` (``b`` is 0 where it is None).

    Exact for every operator that is linear in its weight's output channels: convolutions of any groups, stride, dilation and
    padding, and matrix products.
    """
    along = [1] * weight.ndim
    along[axis] = -1
    with np.errstate(invalid="ignore", over="ignore"):
        return weight * s.reshape(along), (t if bias is None else s * bias + t)


def rounded_once(exact: Float64, dtype: str) -> NDArray[Any]:
    """Return ``exact`` rounded to the nearest value of ``dtype``, ties to even.

    A conversion to a 16-bit format by way of float32 rounds twice and may end one step off. Rounding to odd in between
    (truncate, then set the last bit if anything was lost) is the classical remedy: float32 keeps more than two bits beyond
    either format, so the second rounding sees on which side of a tie the value lies.
    """
    if dtype in {"float64", "float32"}:
        with np.errstate(over="ignore"):
            return exact.astype(_FORMATS[dtype])
    with np.errstate(over="ignore", invalid="ignore"):
        near = exact.astype(np.float32)
        towards_zero = np.where(np.abs(near.astype(np.float64)) > np.abs(exact), np.nextafter(near, np.float32(0)), near).astype(np.float32)
        is_inexact = towards_zero.astype(np.float64) != exact
        odd = (towards_zero.view(np.uint32) | (is_inexact & np.isfinite(exact)).astype(np.uint32)).view(np.float32)
        rounded: NDArray[Any] = odd.astype(_FORMATS[dtype])
        return rounded
