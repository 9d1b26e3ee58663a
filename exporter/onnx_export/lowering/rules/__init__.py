"""Operators that have another form in opset 17.

A rule takes the node, a maker and the model's opset. It returns the value that stands for the node's first output, or None where the
node itself now has its form; it raises ``NoFormError`` where there is none.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from exporter.onnx_export.lowering.making import Maker
from exporter.onnx_export.lowering.rules.activations import gelu, mish, swish
from exporter.onnx_export.lowering.rules.group_normalization import group_normalization
from exporter.onnx_export.lowering.rules.padding import pad
from exporter.onnx_export.lowering.rules.reductions import REDUCTIONS, reduction
from exporter.onnx_export.lowering.rules.resizing import resize
from exporter.onnx_export.lowering.rules.sampling import dft, grid_sample
from exporter.onnx_export.lowering.rules.splitting import split

__all__ = ["RULES"]

Rule = Callable[[ir.Node, Maker, int], ir.Value | None]

RULES: dict[str, Rule] = {
    "DFT": dft,
    "Gelu": gelu,
    "GridSample": grid_sample,
    "GroupNormalization": group_normalization,
    "Mish": mish,
    "Pad": pad,
    "Resize": resize,
    "Split": split,
    "Swish": swish,
    **dict.fromkeys(REDUCTIONS, reduction),
}
