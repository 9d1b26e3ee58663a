"""The algebra of folding, on float64 arrays; rounding to the weights' own dtype happens once, at the very end.

A BatchNorm in eval mode is ``BN(z) = s z + t`` per channel, with

    s = gamma / sqrt(var + eps)        t = beta - mean s        (gamma = 1 and beta = 0 where it has no affine part)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FORMATS",
    "Float64",
    "affine_from_batch_norm",
    "factor_of_inputs",
    "factor_of_outputs",
    "largest_of",
    "map_at_each_place",
    "places_inside",
    "rounded_once",
    "scaled_by",
    "scaled_inputs",
    "scaled_outputs",
    "shift_of_each_place",
    "shift_of_each_tap",
    "shift_seen",
    "shifted_bias",
    "with_input_of_ones",
]

Float64 = NDArray[np.float64]

_FIELDS = {"float32": (128, 23), "float16": (16, 10), "bfloat16": (128, 7)}
"""The exponent from which on nothing is finite, and the bits of the fraction."""

FORMATS: dict[str, Any] = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
"""The dtypes that numbers are rounded to, as NumPy knows them."""


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


def scaled_outputs(weight: Float64, s: Float64, *, axis: int = 0, groups: int = 1, is_transposed: bool = False) -> Float64:
    """Return ``W' = s W`` along the output channels of ``weight``.

    Exact for every operator that is linear in its weight's output channels: convolutions of any groups, stride, dilation and
    padding, and matrix products. A transposed convolution keeps its weight as ``(inputs, outputs of a group, ...)``.
    """
    return scaled_by(weight, factor_of_outputs(weight.shape, s, axis=axis, groups=groups, is_transposed=is_transposed))


def factor_of_outputs(shape: Sequence[int], s: Float64, *, axis: int = 0, groups: int = 1, is_transposed: bool = False) -> Float64:
    """Return what a weight of ``shape`` is multiplied by to scale its outputs by ``s``: an array of as many axes, each as long or 1."""
    return _by_group(shape, s, groups) if is_transposed else _along(shape, s, axis)


def scaled_inputs(weight: Float64, s: Float64, *, axis: int = 1, groups: int = 1, is_transposed: bool = False) -> Float64:
    """Return ``W'`` with ``W' * x = W * (s x)``: scaled along the input channels of ``weight``."""
    return scaled_by(weight, factor_of_inputs(weight.shape, s, axis=axis, groups=groups, is_transposed=is_transposed))


def factor_of_inputs(shape: Sequence[int], s: Float64, *, axis: int = 1, groups: int = 1, is_transposed: bool = False) -> Float64:
    """Return what a weight of ``shape`` is multiplied by to scale its inputs by ``s``: an array of as many axes, each as long or 1."""
    if not is_transposed and groups > 1:
        return _by_group(shape, s, groups)
    return _along(shape, s, 0 if is_transposed else axis)


def shift_seen(weight: Float64, t: Float64, *, axis: int = 1, groups: int = 1, is_transposed: bool = False) -> Float64:
    """Return ``W * t`` for a shift ``t`` per input channel, one number for each output channel.

    It is what every output gets where every output sees all taps of the weight.
    """
    scaled = scaled_inputs(weight, t, axis=axis, groups=groups, is_transposed=is_transposed)
    seen: Float64
    with np.errstate(invalid="ignore", over="ignore"):
        if is_transposed:
            seen = scaled.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).sum(axis=(1, 3)).reshape(-1)
        elif weight.ndim == 2:
            seen = scaled.sum(axis=axis)
        else:
            seen = scaled.reshape(weight.shape[0], -1).sum(axis=1)
    return seen


def shift_of_each_tap(weight: Float64, t: Float64, *, groups: int = 1, is_transposed: bool = False) -> Float64:
    """Return ``sum over c of W[o, c, k] t[c]`` of a convolution, of shape ``(outputs, *kernel)``."""
    seen: Float64
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = scaled_inputs(weight, t, groups=groups, is_transposed=is_transposed)
        if is_transposed:
            by_group = scaled.reshape(groups, -1, *weight.shape[1:])  # (groups, inputs, outputs, *kernel) of each group
            seen = by_group.sum(axis=1).reshape(-1, *weight.shape[2:])
        else:
            seen = scaled.sum(axis=1)
    return seen


def places_inside(size: int, output_size: int, taps: int, *, stride: int, before: int, dilation: int, is_transposed: bool = False) -> Float64:
    """Return for every place of the output and every tap, along one axis, 1 where the tap meets a value of the input and 0 elsewhere.

    Args:
        size, output_size: of the input without what is put around it, and of the output.
        taps: of the kernel.
        before: what is put in front of the input; of a transposed convolution, what is cut off.

    Returns:
        Shape ``(output_size, taps)``.
    """
    place, tap = np.arange(output_size)[:, None], np.arange(taps)[None, :]
    rest = np.zeros(1, dtype=np.int64)
    if is_transposed:
        met, rest = np.divmod(place + before - dilation * tap, stride)
    else:
        met = stride * place - before + dilation * tap
    inside: Float64 = ((rest == 0) & (met >= 0) & (met < size)).astype(np.float64)
    return inside


def shift_of_each_place(taps: Float64, inside: Sequence[Float64]) -> Float64:
    """Return ``sum over taps k that are inside at y of taps[o, k]``, of shape ``(1, outputs, *spatial)``.

    Args:
        taps: from ``shift_of_each_tap``.
        inside: from ``places_inside``, one for each axis; a tap is inside where it is so along every axis.
    """
    summed: Float64 = taps
    with np.errstate(invalid="ignore", over="ignore"):
        for axis in inside:
            summed = np.tensordot(summed, axis, axes=(1, 1))  # the axis of taps goes, that of places comes last
    return summed.reshape(1, *summed.shape)


def map_at_each_place(weight: Float64, given: Float64, groups: int) -> Float64:
    """Return what a convolution of one tap makes of a constant map ``given`` of shape ``(1, inputs, *spatial)``."""
    with np.errstate(invalid="ignore", over="ignore"):
        made: Float64 = weight.reshape(groups, weight.shape[0] // groups, -1) @ given.reshape(groups, given.shape[1] // groups, -1)
    return made.reshape(1, weight.shape[0], *given.shape[2:])


def _along(shape: Sequence[int], s: Float64, axis: int) -> Float64:
    along = [1] * len(shape)
    along[axis] = -1
    return s.reshape(along)


def _by_group(shape: Sequence[int], s: Float64, groups: int) -> Float64:
    """Return ``s``, whose numbers are those of one group after the other, for a weight with the groups along its first axis."""
    of_group: Float64 = s.reshape(groups, -1)
    return np.repeat(of_group, shape[0] // groups, axis=0).reshape(shape[0], -1, *[1] * (len(shape) - 2))


def scaled_by(weight: Float64, factor: Float64) -> Float64:
    """Return ``weight`` times a factor of its outputs or its inputs."""
    scaled: Float64
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = weight * factor
    return scaled


def shifted_bias(bias: Float64 | None, s: Float64, t: Float64) -> Float64:
    """Return ``b' = s b + t``; ``b`` is 0 where it is None."""
    with np.errstate(invalid="ignore", over="ignore"):
        return t if bias is None else s * bias + t


def with_input_of_ones(weight: Float64, ones: Float64, groups: int, *, is_transposed: bool) -> Float64:
    """Return a weight with one more input channel in each group, behind the others.

    Args:
        weight: of a convolution.
        ones: the weight of the further channel, ``(outputs, 1, *kernel)``.
        groups: of the convolution.
        is_transposed: whether ``weight`` is ``(inputs, outputs of a group, *kernel)``.
    """
    if not is_transposed:
        return np.concatenate([weight, ones], axis=1)
    by_group = weight.reshape(groups, -1, *weight.shape[1:])  # (groups, inputs, outputs, *kernel) of each group
    further = ones.reshape(groups, 1, weight.shape[1], *weight.shape[2:])
    return np.concatenate([by_group, further], axis=1).reshape(-1, *weight.shape[1:])


def largest_of(dtype: str) -> float:
    """Return the largest number that still rounds to a finite value of ``dtype``; from there on it becomes infinite."""
    if dtype == "float64":
        return float(np.finfo(np.float64).max)
    exponent, digits = _FIELDS[dtype]
    return float(np.nextafter(2.0**exponent - 2.0 ** (exponent - digits - 2), 0.0))


def rounded_once(exact: Float64, dtype: str) -> NDArray[Any]:
    """Return ``exact`` rounded to the nearest value of ``dtype``, ties to even.

    A conversion to a 16-bit format by way of float32 rounds twice and may end one step off. Rounding to odd in between
    (truncate, then set the last bit if anything was lost) is the classical remedy: float32 keeps more than two bits beyond
    either format, so the second rounding sees on which side of a tie the value lies.
    """
    if dtype in {"float64", "float32"}:
        with np.errstate(over="ignore"):
            return exact.astype(FORMATS[dtype])
    with np.errstate(over="ignore", invalid="ignore"):
        near = exact.astype(np.float32)
        towards_zero = np.where(np.abs(near.astype(np.float64)) > np.abs(exact), np.nextafter(near, np.float32(0)), near).astype(np.float32)
        is_inexact = towards_zero.astype(np.float64) != exact
        odd = (towards_zero.view(np.uint32) | (is_inexact & np.isfinite(exact)).astype(np.uint32)).view(np.float32)
        rounded: NDArray[Any] = odd.astype(FORMATS[dtype])
        return rounded
