"""Run a float32 ONNX model on the samples and find, for the tensors asked for, which range they need in 8 bits.

The samples go through the model twice: the first time for the largest magnitudes, the second time for the histograms in between. A few rows are run
at once, so that memory does not grow with their number; rows, order and bins are fixed, so that the same samples give the same ranges.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporter.artifacts import OnnxModel, TensorSpec
from exporter.files import write_bytes
from exporter.runners.base import Array
from exporter.runners.onnxruntime import OnnxruntimeRunner
from exporter.verify.feeds import fixed_batch
from exporter.verify.thresholds import BINS, Calibration, clipped_share, threshold_of

__all__ = ["CalibratedRange", "calibrate"]

_ROWS = 4


@dataclass(frozen=True, slots=True)
class CalibratedRange:
    """One tensor.

    Attributes:
        largest: magnitude on the samples; NaN or infinity where the model made one.
        kept: the largest magnitude that is kept; 0 where the tensor is zero on every sample.
        clipped: share of the values beyond it.
    """

    largest: float
    kept: float
    clipped: float


def calibrate(
    model: OnnxModel, tensors: Sequence[str], inputs: Mapping[str, Array], method: Calibration, *, precision: str, percentile: float, threads: int = 1
) -> dict[str, CalibratedRange]:
    """Return tensor -> range.

    Args:
        model: in float32.
        tensors: names of float32 values of its main graph, inputs included.
        inputs: input name -> array ``(samples, ...)``, not empty.
        method: see ``exporter.verify.thresholds``.
        precision: ``int8`` or ``fp8``.
        percentile: for the method of that name.
        threads: of ONNX Runtime.

    Raises:
        ModelNotSupported: ONNX Runtime does not run the model (E623).
        SampleError: the samples do not fit its inputs (E611 to E614).
    """
    import onnx

    proto = onnx.load(str(model.path))
    known = {value.name for value in (*proto.graph.output, *proto.graph.input)}
    added = [name for name in tensors if name not in known]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in added)
    outputs = (*model.outputs, *(TensorSpec(name, (), "") for name in added))
    largest = dict.fromkeys(tensors, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "visible.onnx"
        write_bytes(path, proto.SerializeToString())
        with OnnxruntimeRunner(dataclasses.replace(model, path=path, outputs=outputs), name="onnx, calibrated", threads=threads) as runner:

            def measure(name: str, values: Array) -> None:
                largest[name] = float(np.maximum(largest[name], np.abs(values).max(initial=0.0)))  # NaN stays

            _visit(runner, inputs, tensors, measure)
            counts = {name: np.zeros(BINS, np.int64) for name in tensors if 0 < largest[name] < np.inf}

            def count(name: str, values: Array) -> None:
                if name in counts:
                    counts[name] += _histogram(values, largest[name])

            _visit(runner, inputs, tensors, count)
    found = {}
    for name in tensors:
        if name not in counts:
            found[name] = CalibratedRange(largest[name], largest[name], 0.0)
            continue
        kept = threshold_of(counts[name], largest[name], method, precision=precision, percentile=percentile)
        found[name] = CalibratedRange(largest[name], kept, clipped_share(counts[name], largest[name], kept))
    return found


def _visit(runner: OnnxruntimeRunner, inputs: Mapping[str, Array], tensors: Sequence[str], look: Callable[[str, Array], None]) -> None:
    """Run every sample and show each tensor; where the batch is fixed, the last one is filled with the first samples."""
    count = min(len(array) for array in inputs.values())
    rows = fixed_batch(runner.inputs) or _ROWS
    for start in range(0, count, rows):
        places = np.arange(start, start + rows) % count if fixed_batch(runner.inputs) else np.arange(start, min(start + rows, count))
        feed = {name: array[places] for name, array in inputs.items()}
        found = runner.infer(feed)
        for name in tensors:
            look(name, found[name] if name in found else feed[name])


def _histogram(values: Array, largest: float) -> NDArray[np.int64]:
    """Return the counts of the magnitudes in equal bins from 0 to ``largest``, which belongs to the last one."""
    places = (np.abs(values).astype(np.float64) * (BINS / largest)).astype(np.int64)
    return np.bincount(np.minimum(places, BINS - 1).ravel(), minlength=BINS)
