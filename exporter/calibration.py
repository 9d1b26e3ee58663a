"""The ranges that a network needs in 8 bits: measured on the user's samples, before anything is quantised."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from exporter.artifacts import EIGHT_BIT, OnnxModel
from exporter.config import Config
from exporter.errors import SampleError

if TYPE_CHECKING:
    from exporter.samples import Samples

__all__ = ["Calibrate", "calibration_of", "digest_of_calibration"]

Calibrate = Callable[[OnnxModel, Sequence[str]], tuple[Mapping[str, float], Mapping[str, str]]]
"""Given a float32 model and names of its values: the largest magnitude to keep of each, and facts for the lineage."""
_SHOWN = 8


def calibration_of(config: Config, samples: Samples | None) -> Calibrate | None:
    """Return what measures the ranges, None where the precision needs none.

    Raises:
        SampleError: there are no recorded samples (E481).
    """
    if config.onnx.precision not in EIGHT_BIT:
        return None
    return functools.partial(_calibrate, config, _recorded(config, samples))


def digest_of_calibration(config: Config, samples: Samples | None) -> str:
    """Return a digest of the samples that decide the ranges, empty where none do.

    Raises:
        SampleError: there are no recorded samples (E481).
    """
    import numpy as np

    if config.onnx.precision not in EIGHT_BIT:
        return ""
    digest = hashlib.sha256()
    for name, array in sorted(_recorded(config, samples).inputs.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _recorded(config: Config, samples: Samples | None) -> Samples:
    if samples is None:
        facts = {"precision": config.onnx.precision, "meaning": "ranges of random inputs are not those of the network at work"}
        help_text = '[samples] path = "samples.npz", a hundred or more of the inputs that the network will see; they need no labels'
        raise SampleError("E481", "8 bits need recorded samples to be calibrated on, and none are configured", facts=facts, help=help_text)
    return samples.head(config.samples.limit)


def _calibrate(config: Config, samples: Samples, model: OnnxModel, tensors: Sequence[str]) -> tuple[dict[str, float], dict[str, str]]:
    """Measure the ranges.

    Raises:
        SampleError: the samples do not fit the model (E611 to E614), or make NaN or infinity of a value in float32 already (E482).
    """
    import math

    from exporter.verify import calibrate

    onnx = config.onnx
    ranges = calibrate(
        model,
        tensors,
        samples.inputs,
        onnx.calibration,
        precision=onnx.precision,
        percentile=onnx.calibration_percentile,
        threads=config.latency.threads,
    )
    wrong = [name for name, found in ranges.items() if not math.isfinite(found.largest)]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        found = {"found": f"NaN or infinity in {', '.join(wrong[:_SHOWN])}{more}", "samples": samples.path or "recorded"}
        raise SampleError("E482", "the network has no finite range on the samples", facts=found, help="look at the samples, and at exporter check")
    method = f"{onnx.calibration} {onnx.calibration_percentile:g}" if onnx.calibration == "percentile" else onnx.calibration
    facts = {"calibration": f"{method}, {len(samples)} samples", "calibration_sha256": digest_of_calibration(config, samples)}
    worst = max(ranges, key=lambda name: ranges[name].clipped, default="")
    if worst and ranges[worst].clipped:
        facts["calibration_clipped"] = f"{ranges[worst].clipped:.2%} in {worst}"
    return {name: found.kept for name, found in ranges.items()}, facts
