"""Doubt the float64 run of an ONNX model where its numbers are far from ONNX Runtime's.

Rounding grows along a network; an operator that is understood in two ways departs at once. So where the outputs are far apart, both
run the same rows node by node, and a node whose inputs agree and whose output does not speaks against the reference.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.artifacts import OnnxModel, TensorSpec
from exporter.files import write_bytes
from exporter.runners.base import Array, Feed
from exporter.runners.onnxruntime import OnnxruntimeRunner

if TYPE_CHECKING:
    import onnx

    from exporter.runners.onnx_float64 import OnnxFloat64Runner
    from exporter.verify.reference import OwnError, Reference

__all__ = ["doubt_about"]

_FAR: Mapping[str, float] = {"float64": 1e-9, "float32": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}
"""Relative L2 distance beyond which it may be more than rounding."""
_ROWS = 2
_SUDDEN = 30.0
"""By how much a node's departure exceeds that of its inputs; rounding alone takes a step of a few."""


def doubt_about(runner: OnnxFloat64Runner, reference: Reference, own_error: OwnError, model: OnnxModel, message: onnx.ModelProto) -> str:
    """Return what speaks against the float64 run; empty where nothing does.

    Args:
        runner: of the reference, entered.
        own_error: of ONNX Runtime.
        model: the same model as a file.
        message: of the model, with external data.
    """
    far = _FAR.get(own_error.precision, _FAR["float32"])
    named = reference.feeds[0]
    pairs = zip(reference.outputs[named.name], own_error.outputs[named.name], strict=True)
    if all(_distance(ours[name], theirs[name]) <= far for ours, theirs in pairs for name in ours):
        return ""
    chunk = next(iter(named.chunks()))
    is_fixed = any(isinstance(spec.shape[0], int) for spec in model.inputs)
    found = _sudden_departure(runner, model, message, chunk if is_fixed else {name: rows[:_ROWS] for name, rows in chunk.items()}, far)
    return f"in float64 it departs at once from ONNX Runtime at {found}" if found else ""


def _sudden_departure(runner: OnnxFloat64Runner, model: OnnxModel, message: onnx.ModelProto, feed: Feed, far: float) -> str:
    values = _observed(model, message, feed)
    departures: dict[str, float] = {}
    found = ""

    def compare(node: onnx.NodeProto, outputs: tuple[Array, ...]) -> None:
        nonlocal found
        before = max((departures.get(name, 0.0) for name in node.input), default=0.0)
        for name, array in zip(node.output, outputs, strict=False):
            departures[name] = _distance(array, values[name]) if name in values else before
            if not found and departures[name] > max(far, _SUDDEN * before):
                label = node.name or name
                found = f"{node.op_type}, node {label!r}, whose inputs agree to {before:.0e} and whose output differs by {departures[name]:.0e}"

    runner.observe(feed, compare)
    return found


def _observed(model: OnnxModel, message: onnx.ModelProto, feed: Feed) -> dict[str, Array]:
    """Run ``message`` in ONNX Runtime with the values of its main graph as outputs."""
    import onnx

    shown = onnx.ModelProto()
    shown.CopyFrom(message)
    known = {value.name for value in shown.graph.output}
    names = [name for node in shown.graph.node for name in node.output if name and name not in known]
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    outputs = (*model.outputs, *(TensorSpec(name, (), "") for name in names))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "observed.onnx"
        write_bytes(path, shown.SerializeToString())
        with OnnxruntimeRunner(dataclasses.replace(model, path=path, outputs=outputs), name="onnx, observed", optimize=False) as runner:
            return runner.infer(feed)


def _distance(reference: Array, candidate: Array) -> float:
    r, c = np.asarray(reference), np.asarray(candidate)
    if r.shape != c.shape:
        return float("inf")
    if r.dtype.kind != "f":
        return 0.0  # integers and truth values follow from numbers that are compared
    c = c.astype(np.float64)
    if not np.array_equal(np.isfinite(r), np.isfinite(c)):
        return float("inf")
    finite = np.isfinite(r)
    norm, distance = float(np.linalg.norm(r[finite])), float(np.linalg.norm((c - r)[finite]))
    return 0.0 if distance == 0.0 else distance / norm if norm else float("inf")
