"""How far two ONNX models of one function are apart, in ONNX Runtime on the CPU, without a reference.

departure of an output = largest ||b - a|| / ||a|| over the feeds
"""

from __future__ import annotations

import math

import numpy as np

from exporter.artifacts import OnnxModel
from exporter.runners.base import Array
from exporter.runners.onnxruntime import OnnxruntimeRunner
from exporter.verify.feeds import NamedFeed
from exporter.verify.reference import collect_outputs

__all__ = ["measure_departure"]


def measure_departure(first: OnnxModel, second: OnnxModel, feeds: tuple[NamedFeed, ...], *, threads: int = 1) -> dict[str, float]:
    """Return output -> departure; infinity where an output is missing, has another shape or dtype, other integers, or NaN elsewhere.

    Raises:
        ModelNotSupported: ONNX Runtime does not load or run one of them (E623).
        SampleError: the feeds do not fit (E611 to E614).
    """
    values = []
    for model in (first, second):
        with OnnxruntimeRunner(model, name=f"opset {model.opset}", threads=threads) as runner:
            values.append(collect_outputs(runner, feeds))
    departures: dict[str, float] = {}
    for named in feeds:
        for wanted, found in zip(*(outputs.outputs[named.name] for outputs in values), strict=True):
            for name, array in wanted.items():
                departures[name] = max(departures.get(name, 0.0), _departure(array, found[name]) if name in found else math.inf)
    return departures


def _departure(a: Array, b: Array) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
        return 0.0
    if a.dtype.kind in "iub" or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return math.inf
    finite = np.isfinite(a)
    size, distance = (float(np.linalg.norm(array[finite].astype(np.float64))) for array in (a, b.astype(np.float64) - a.astype(np.float64)))
    return distance / size if size else math.inf
