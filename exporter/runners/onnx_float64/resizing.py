"""``Resize`` and ``Upsample``: along one axis after the other, each a choice of neighbours or a small matrix.

The neighbour that is nearest is chosen in float32, as runtimes choose it: it belongs to what the network computes. Weights of
linear and cubic interpolation are computed in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_resize import Resize as ReferenceResize

from exporter.runners.base import Array

__all__ = ["Resize", "Upsample"]

_CUBIC_COEFF = -0.75


class Resize(ReferenceResize):
    """``Resize`` of every opset; with antialiasing or a region of interest it is the evaluator's own."""

    op_domain = ""

    def _run(self, x: Array, *inputs: Array | None, **attributes: Any) -> tuple[Array]:  # type: ignore[override] # noqa: ANN401 - as ONNX has them
        if self.run_params["opsets"][""] < 11:
            return (_resized(x, _by_floor(x, inputs[0]), {"mode": attributes.get("mode"), **_OLD}),)
        if attributes.get("antialias") or attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize":
            found: tuple[Array] = super()._run(x, *inputs, **attributes)  # type: ignore[arg-type]
            return found
        _, scales, sizes = (*inputs, None, None, None)[:3]
        axes = [axis % x.ndim for axis in attributes.get("axes") or range(x.ndim)]
        if scales is not None and scales.size:
            plan = {axis: _floored(x.shape[axis], scale) for axis, scale in zip(axes, scales, strict=True)}
        elif sizes is not None:
            plan = _by_sizes(x, axes, sizes, attributes.get("keep_aspect_ratio_policy") or "stretch")
        else:
            raise ValueError("neither scales nor sizes")
        return (_resized(x, plan, attributes),)


class Upsample(OpRun):
    """``Upsample`` of opsets 7 to 9, whose scales are an attribute or an input."""

    op_domain = ""

    def _run(self, x: Array, *inputs: Array, **attributes: Any) -> tuple[Array]:  # noqa: ANN401
        scales = inputs[0] if inputs else attributes["scales"]
        return (_resized(x, _by_floor(x, scales), {"mode": attributes.get("mode"), **_OLD}),)


_OLD = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def _by_floor(x: Array, scales: Any) -> dict[int, tuple[int, float]]:  # noqa: ANN401 - an array, or the numbers of an attribute
    return {axis: _floored(size, scale) for axis, (size, scale) in enumerate(zip(x.shape, scales, strict=True))}


def _floored(size: int, scale: float) -> tuple[int, float]:
    """Return the new size, which runtimes compute in float32, and the scale."""
    return int(np.floor(np.float32(size) * np.float32(scale))), float(scale)


def _by_sizes(x: Array, axes: list[int], sizes: Array, policy: str) -> dict[int, tuple[int, float]]:
    scales = [int(size) / x.shape[axis] for axis, size in zip(axes, sizes, strict=True)]
    if policy == "stretch":
        return {axis: (int(size), scale) for axis, size, scale in zip(axes, sizes, scales, strict=True)}
    scale = min(scales) if policy == "not_larger" else max(scales)
    return {axis: (math.floor(scale * x.shape[axis] + 0.5), scale) for axis in axes}


def _resized(x: Array, plan: dict[int, tuple[int, float]], attributes: dict[str, Any]) -> Array:
    mode = attributes.get("mode") or "nearest"
    transformation = attributes.get("coordinate_transformation_mode") or "half_pixel"
    for axis, (size, scale) in plan.items():
        old = x.shape[axis]
        if size == old and scale == 1.0:
            continue
        if mode == "nearest":
            places = _coordinates(old, size, scale, transformation, np.float32)
            x = np.take(x, _nearest(places, attributes.get("nearest_mode") or "round_prefer_floor").clip(0, old - 1), axis)
        else:
            places = _coordinates(old, size, scale, transformation, np.float64)
            matrix = _cubic(places, old, attributes) if mode == "cubic" else _linear(places, old)
            x = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
    return np.ascontiguousarray(x)


def _coordinates(old: int, new: int, scale: float, transformation: str, dtype: type[np.floating[Any]]) -> NDArray[Any]:
    """Return where each new cell lies among the old ones."""
    at, one, half, by = np.arange(new).astype(dtype), dtype(1), dtype(0.5), dtype(scale)
    if transformation == "align_corners":
        corners: NDArray[Any] = at * dtype(old - 1) / dtype(new - 1) if new > 1 else np.zeros(1, dtype)
        return corners
    if transformation == "asymmetric":
        below: NDArray[Any] = at / by
        return below
    if transformation == "pytorch_half_pixel" and new == 1:
        return np.zeros(1, dtype)
    places: NDArray[Any] = (at + half) / by - half
    if transformation == "half_pixel_symmetric":
        places = places + dtype(old) / dtype(2) * (one - dtype(new) / (by * dtype(old)))
    elif transformation not in {"half_pixel", "pytorch_half_pixel"}:
        raise NotImplementedError(f"coordinate_transformation_mode {transformation}")
    return places


def _nearest(places: NDArray[Any], mode: str) -> NDArray[np.int64]:
    floor, ceil, half = np.floor(places), np.ceil(places), places.dtype.type(0.5)
    chosen = {
        "floor": floor,
        "ceil": ceil,
        "round_prefer_floor": np.where(places == floor + half, floor, np.floor(places + half)),
        "round_prefer_ceil": np.floor(places + half),
    }
    indices: NDArray[np.int64] = chosen[mode].astype(np.int64)
    return indices


def _linear(places: NDArray[np.float64], old: int) -> NDArray[np.float64]:
    below = np.floor(places).astype(np.int64)
    return _matrix(below, [1 - (places - below), places - below], 0, old)


def _cubic(places: NDArray[np.float64], old: int, attributes: dict[str, Any]) -> NDArray[np.float64]:
    given = attributes.get("cubic_coeff_a")
    a = _CUBIC_COEFF if given is None else given
    below = np.floor(places).astype(np.int64)
    s = places - below
    weights = [
        ((a * (s + 1) - 5 * a) * (s + 1) + 8 * a) * (s + 1) - 4 * a,
        ((a + 2) * s - (a + 3)) * s * s + 1,
        ((a + 2) * (1 - s) - (a + 3)) * (1 - s) * (1 - s) + 1,
        ((a * (2 - s) - 5 * a) * (2 - s) + 8 * a) * (2 - s) - 4 * a,
    ]
    if attributes.get("exclude_outside"):
        inside = [(below + step >= 0) & (below + step < old) for step in range(-1, 3)]
        weights = [np.where(here, weight, 0.0) for here, weight in zip(inside, weights, strict=True)]
        total = sum(weights)
        weights = [weight / total for weight in weights]
    return _matrix(below, weights, -1, old)


def _matrix(below: NDArray[np.int64], weights: list[NDArray[np.float64]], first: int, old: int) -> NDArray[np.float64]:
    """Return ``(new, old)``: the weights of the neighbours from ``below + first`` on; beyond the border stands its last cell."""
    matrix = np.zeros((len(below), old))
    rows = np.arange(len(below))
    for step, weight in enumerate(weights, first):
        np.add.at(matrix, (rows, (below + step).clip(0, old - 1)), weight)
    return matrix
