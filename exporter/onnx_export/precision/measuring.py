"""Have the ranges of a float32 model measured before it is written in float16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import onnx

from exporter.artifacts import OnnxModel, Provenance, RangeEvidence
from exporter.files import digest_of_file, write_bytes
from exporter.onnx_export.precision.shares import HalfValues
from exporter.onnx_export.reading import describe
from exporter.onnx_export.removing import remove_onnx

__all__ = ["TOO_LARGE", "checked_range", "on_float32"]

_T = TypeVar("_T")

TOO_LARGE = RangeEvidence(not_measured="over 2 GiB of weights, which do not fit into one ONNX file with every value made visible")


def checked_range(model: onnx.ModelProto, path: Path, values: HalfValues, check: Callable[[OnnxModel, HalfValues], RangeEvidence]) -> RangeEvidence:
    """Return what ``check`` finds of ``model``, which is written beside ``path`` for the time of the check."""
    return on_float32(model, path, lambda between: check(between, values))


def on_float32(model: onnx.ModelProto, path: Path, look: Callable[[OnnxModel], _T]) -> _T:
    """Write the float32 model beside ``path`` for the time of a look at it."""
    between = path.with_name(f".{path.stem}.float32.onnx")
    try:
        write_bytes(between, model.SerializeToString())
        return look(describe(model, between, digest_of_file(between), Provenance("onnx_export")))
    finally:
        remove_onnx(between)
