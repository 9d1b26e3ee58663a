"""Cache key of the ONNX model."""

from __future__ import annotations

from exporter.artifacts import Digest
from exporter.config import OnnxConfig
from exporter.factories import installed_version
from exporter.files import digest_of_settings

__all__ = ["LIBRARIES", "onnx_key"]

LIBRARIES = ("exporter", "onnx", "onnx-ir", "onnxscript", "torch")
"""Libraries whose version decides what is in the file."""


def onnx_key(graph: Digest, config: OnnxConfig, *, calibration: str = "", feeds: str = "") -> str:
    """Return the digest of everything that decides the ONNX model made from the stored graph with digest ``graph``, and what its record says.

    Args:
        graph: of the stored graph.
        config: of the file.
        calibration: digest of the samples that decide the ranges of a model in 8 bits.
        feeds: digest of what the ranges of float16 are measured on: other samples ask the question again.
    """
    versions = {name: installed_version(name) for name in LIBRARIES}
    parts = {"graph": str(graph), "onnx": config.to_json(), "versions": versions}
    if calibration:
        parts |= {"calibration": calibration, "onnxruntime": installed_version("onnxruntime-gpu")}
    if feeds:
        parts |= {"feeds": feeds}
    return digest_of_settings(parts).hex
