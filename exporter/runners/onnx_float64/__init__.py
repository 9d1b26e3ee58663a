"""Run an ONNX model from anywhere in float64: what rounding cannot blur, to measure everything else against.

ONNX Runtime has no float64 kernels for convolutions. ONNX's own reference evaluator has none that are slow enough to notice
for small operators, and is replaced where it is slow, or wrong for old opsets.

    widening.py     the model with every floating tensor and type in float64
    windows.py      convolutions and pooling
    resizing.py     Resize and Upsample
    operators.py    what changed its meaning between opsets
    evaluating.py   node after node, a value kept as long as somebody reads it
    runner.py       the runner
"""

from __future__ import annotations

from exporter.runners.onnx_float64.runner import OnnxFloat64Runner

__all__ = ["OnnxFloat64Runner"]
