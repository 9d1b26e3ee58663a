"""Stages 4 and 5: an ONNX model, and a plan of TensorRT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exporter.artifacts.provenance import Digest, Provenance
from exporter.artifacts.specs import TensorSpec
from exporter.artifacts.verdicts import RangeEvidence

__all__ = ["EIGHT_BIT", "OnnxModel", "Plan", "Profile"]

EIGHT_BIT = frozenset({"fp8", "int8"})
"""Precisions of models with pairs of QuantizeLinear and DequantizeLinear; the rest of such a model has another one."""


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """An ONNX file that passed the full checker.

    Attributes:
        precision: ``float32``, ``float16``, ``bfloat16``, ``float64``, ``int8`` or ``fp8``: what the file declares, else that of its pairs of
            QuantizeLinear and DequantizeLinear, else what most of its weights have.
        ranges: how its values lie in the range of float16; None where that was no question.
    """

    path: Path
    digest: Digest
    opset: int
    ir_version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    num_nodes: int
    num_batch_norms: int
    metadata: Mapping[str, str]
    provenance: Provenance
    precision: str = "float32"
    ranges: RangeEvidence | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """An optimization profile: input name -> (min, opt, max) shapes."""

    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Plan:
    """A serialised TensorRT engine with its sidecar."""

    path: Path
    sidecar_path: Path
    digest: Digest
    precision: str
    realised_precision: Mapping[str, float]
    """Share of layers by precision, as the engine inspector tells it; empty where the inspector says nothing."""
    tensorrt_version: str
    gpu: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    build_seconds: float
    provenance: Provenance
    refittable: bool = False
    """It takes new weights, and is slower for it: no claim of latency is made with it."""
    stripped: bool = False
    """It has no weights: nothing runs it until it has been refitted."""
    version_compatible: bool = False
    """Later releases of TensorRT run it; it carries code for the host."""
    debug_tensors: bool = False
    """It hands out what it writes between its layers: no claim of latency is made with it."""
    plugins: tuple[str, ...] = ()
    """Names of the plugin libraries that it needs."""
