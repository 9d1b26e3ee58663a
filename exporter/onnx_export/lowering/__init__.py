"""ONNX model of a newer opset -> the same function in opset 17, which TensorRT 8 reads.

lowering.py    the order of the work, and what is refused
bodies.py      operators that ONNX itself defines by others
rules/         one module per kind of operator that has another form in opset 17
form.py        whether a node has a form in opset 17 as it stands
making.py      new nodes and constants beside an old node
converting.py  an ``.onnx`` file -> another one, with its record
"""

from __future__ import annotations

from exporter.onnx_export.lowering.lowering import lower_
from exporter.onnx_export.lowering.making import OPSET

__all__ = ["OPSET", "lower_"]
