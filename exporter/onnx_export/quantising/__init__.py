"""A float32 model -> the same model in 8 bits, by pairs of QuantizeLinear and DequantizeLinear, with float32 inputs, outputs and islands.

products.py     which nodes compute in 8 bits, and why the others do not
placing.py      the pairs, with their scales
recognising.py  the precision of a file that has such pairs already
"""

from __future__ import annotations

from exporter.onnx_export.quantising.placing import FIRST_OPSET, quantise_
from exporter.onnx_export.quantising.products import Product, find_products
from exporter.onnx_export.quantising.recognising import eight_bit_precision

__all__ = ["FIRST_OPSET", "Product", "eight_bit_precision", "find_products", "quantise_"]
