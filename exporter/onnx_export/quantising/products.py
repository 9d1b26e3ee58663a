"""Which nodes compute in 8 bits: products with a constant weight. The rest of them is named, with the reason.

asked for        a pattern of the configuration matches the node's module or its name
computed weight  its second input is computed by other nodes, as in the products of an attention, or is no plain matrix
zero weight      every number of it is 0: a branch that training has not begun to use
infinite weight  a number of it is infinite or NaN
grouped          a transposed convolution in groups: its scales would be shared by the groups
always zero      the node's input is zero on every sample, so that it has no scale (found by the calibration)

Only the main graph is looked at: a branch or a loop stays as it is.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporter.onnx_export.precision.islands import floats_of, is_float

__all__ = ["Product", "find_products"]

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True)
class Product:
    """A node that can compute in 8 bits.

    Attributes:
        data: its first input.
        weight: its second, a constant.
        axis: of the weight, along which the output channels lie.
    """

    node: ir.Node
    data: ir.Value
    weight: ir.Value
    axis: int


def find_products(model: ir.Model, patterns: Sequence[str]) -> tuple[list[Product], dict[ir.Node, str]]:
    """Return the products in the order of the nodes, and node -> reason for those that stay in float32.

    Args:
        model: in float32, functions inlined.
        patterns: in the way of ``fnmatch``, of module names or node names.
    """
    products: list[Product] = []
    islands: dict[ir.Node, str] = {}
    for node in model.graph:
        if node.op_type not in _PRODUCTS or node.domain or not is_float(node.outputs[0]):
            continue
        data, weight = node.inputs[0], node.inputs[1]
        if reason := _reason(node, weight, patterns):
            islands[node] = reason
        elif data is not None and weight is not None:
            products.append(Product(node, data, weight, _channel_axis(node)))
    return products, islands


def _names(node: ir.Node) -> list[str]:
    return [name for name in (node.metadata_props.get("exporter.module", ""), node.name or "") if name]


def _reason(node: ir.Node, weight: ir.Value | None, patterns: Sequence[str]) -> str:
    if any(fnmatch.fnmatchcase(name, pattern) for name in _names(node) for pattern in patterns):
        return "asked for"
    numbers = floats_of(weight)
    if numbers is None or numbers.ndim < 2 or (node.op_type == "MatMul" and numbers.ndim != 2):
        return "computed weight"
    if not np.isfinite(numbers).all() or np.abs(numbers).max(initial=0.0) < np.finfo(np.float32).tiny:
        return "zero weight" if np.isfinite(numbers).all() else "infinite weight"
    return "grouped" if node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) != 1 else ""


def _channel_axis(node: ir.Node) -> int:
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 0 if node.op_type == "Conv" else 1
