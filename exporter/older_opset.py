"""The ONNX model that TensorRT 8 reads: opset 17, beside a newer one, and proven to compute the same.

Both run in ONNX Runtime on the feeds of parity. Their outputs have to agree within rounding, which is what another order of
summation and the formula for a newer operator leave.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifacts import OnnxModel, Profile
from exporter.config import Config
from exporter.errors import ExportError

if TYPE_CHECKING:
    from exporter.samples import Samples

__all__ = ["DEPARTURE", "OPSET_OF_TENSORRT_8", "check_with", "lower_for_tensorrt_8", "needs_lowering"]

OPSET_OF_TENSORRT_8 = 17
_FIRST_WITH_NEWER_OPSETS = 10
DEPARTURE = {"float16": 2e-2, "bfloat16": 1.6e-1, "int8": 5e-2, "fp8": 1e-1}
"""Largest relative L2 distance of an output by precision of the model; 1e-5 in float32."""
_DEPARTURE_FLOAT32 = 1e-5

Check = Callable[[OnnxModel, OnnxModel], Mapping[str, str]]


def needs_lowering(model: OnnxModel, tensorrt_version: str) -> bool:
    """Return whether this release of TensorRT reads only older opsets than the model's."""
    return int(tensorrt_version.partition(".")[0]) < _FIRST_WITH_NEWER_OPSETS and model.opset > OPSET_OF_TENSORRT_8


def lower_for_tensorrt_8(model: OnnxModel, folder: Path, check: Check) -> tuple[OnnxModel, bool]:
    """Return ``<stem>.opset17.onnx`` in ``folder``, and whether it was up to date.

    Raises:
        ExportError: TensorRT 8 has not the model's precision (E487), an operator has no form in opset 17 (E451, E452), or the two models
            disagree (E453).
    """
    if model.precision == "fp8":
        facts = {"file": model.path, "found": "fp8", "expected": "float32, float16 or int8"}
        raise ExportError("E487", "TensorRT 8 has no fp8", facts=facts, help='TensorRT 10 or newer has it; or [onnx] precision = "int8"')
    from exporter.onnx_export import load_onnx, lower_onnx, lowered_key

    path = folder / f"{model.path.stem}.opset{OPSET_OF_TENSORRT_8}.onnx"
    key = lowered_key(model.digest)
    cached = load_onnx(path, key=key)
    return (cached, True) if cached is not None else (lower_onnx(model, path, key=key, check=check), False)


def check_with(config: Config, samples: Samples | None, profiles: tuple[Profile, ...] = ()) -> Check:
    """Return the check that two models agree, on the samples where they fit the models, and on random and edge inputs.

    Args:
        config: sections samples, parity and latency, the last for the number of threads.
        samples: recorded ones.
        profiles: of the engine: random and edge inputs have their shapes.
    """
    return functools.partial(_check, config, samples, profiles)


def _check(config: Config, samples: Samples | None, profiles: tuple[Profile, ...], newer: OnnxModel, older: OnnxModel) -> dict[str, str]:
    """Compare two models; return the largest departure for the lineage.

    Raises:
        ExportError: an output departs by more than rounding (E453).
    """
    from exporter.verify import make_feeds, measure_departure

    if samples is not None and not {spec.name for spec in newer.inputs} <= set(samples.inputs):
        samples = None  # a model from elsewhere
    feeds = make_feeds(samples, newer.inputs, config.samples.replace(required=False), config.parity, profiles=profiles)
    departures = measure_departure(newer, older, feeds, threads=config.latency.threads)
    allowed = DEPARTURE.get(newer.metadata.get("exporter.precision", ""), _DEPARTURE_FLOAT32)
    wrong = {name: departure for name, departure in departures.items() if not departure <= allowed}
    if wrong:
        facts = {
            "found": "; ".join(f"{name}: relative L2 {departure:.1e}" for name, departure in wrong.items()),
            "expected": f"at most {allowed:.0e}",
            "fed": ", ".join(named.name for named in feeds),
        }
        problem = f"the model in opset {older.opset} computes something else than the one in opset {newer.opset}; nothing was written"
        raise ExportError("E453", problem, facts=facts, help="report it with the network; TensorRT 10 or newer reads the newer opset")
    return {f"departure_from_opset_{newer.opset}": f"{max(departures.values()):.1e}" if any(departures.values()) else "0"}
