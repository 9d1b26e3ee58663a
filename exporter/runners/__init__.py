"""Run one artefact behind one protocol: torch, torch with products in 8 bits, ONNX Runtime, ONNX in float64, ONNX with every value rounded, TensorRT.

A runner is used in ``with``: entering loads the artefact, leaving frees what it held. The protocol is in
``exporter.runners.base``; each runtime is imported only when its runner is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.runners.base import Array, Feed, PreparedCall, Runner

if TYPE_CHECKING:
    from exporter.runners.onnx_float64 import OnnxFloat64Runner
    from exporter.runners.onnx_rounded import RoundedOnnxRunner
    from exporter.runners.onnxruntime import OnnxruntimeRunner
    from exporter.runners.tensorrt import TensorrtRunner
    from exporter.runners.torch import TorchRunner
    from exporter.runners.torch_eight_bit import EightBitTorchRunner

__all__ = [
    "Array",
    "EightBitTorchRunner",
    "Feed",
    "OnnxFloat64Runner",
    "OnnxruntimeRunner",
    "PreparedCall",
    "RoundedOnnxRunner",
    "Runner",
    "TensorrtRunner",
    "TorchRunner",
]

_LAZY = {
    "EightBitTorchRunner": "torch_eight_bit",
    "OnnxFloat64Runner": "onnx_float64",
    "OnnxruntimeRunner": "onnxruntime",
    "RoundedOnnxRunner": "onnx_rounded",
    "TensorrtRunner": "tensorrt",
    "TorchRunner": "torch",
}


def __getattr__(name: str) -> object:
    """Import a runner, and with it its runtime, on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
