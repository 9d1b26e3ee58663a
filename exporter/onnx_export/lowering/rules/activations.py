"""Activations that became operators after opset 17, by their formulas.

Gelu   x (1 + erf(x / sqrt 2)) / 2,  or with approximate = "tanh":  x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
Mish   x tanh(log(1 + e^x))
Swish  x sigmoid(alpha x)
"""

from __future__ import annotations

import math

import onnx_ir as ir

from exporter.onnx_export.lowering.making import Maker, NoFormError

__all__ = ["gelu", "mish", "swish"]


def gelu(node: ir.Node, make: Maker, opset: int) -> ir.Value:  # noqa: ARG001 - the signature of a rule
    """Return the formula in the order in which TensorRT knows it again."""
    x = _input(node)
    if node.attributes.get_string("approximate", "none") == "tanh":
        cube = make("Mul", [make("Mul", [x, x]), x])
        inner = make("Mul", [make("Add", [x, make("Mul", [cube, make.like(x, 0.044715)])]), make.like(x, math.sqrt(2 / math.pi))])
        curve = make("Tanh", [inner])
    else:
        curve = make("Erf", [make("Div", [x, make.like(x, math.sqrt(2))])])
    return make("Mul", [make("Mul", [x, make("Add", [curve, make.like(x, 1.0)])]), make.like(x, 0.5)])


def mish(node: ir.Node, make: Maker, opset: int) -> ir.Value:  # noqa: ARG001 - the signature of a rule
    """Return the formula."""
    x = _input(node)
    return make("Mul", [x, make("Tanh", [make("Softplus", [x])])])


def swish(node: ir.Node, make: Maker, opset: int) -> ir.Value:  # noqa: ARG001 - the signature of a rule
    """Return the formula."""
    x = _input(node)
    alpha = node.attributes.get_float("alpha", 1.0)
    scaled = x if alpha == 1.0 else make("Mul", [x, make.like(x, alpha)])
    return make("Mul", [x, make("Sigmoid", [scaled])])


def _input(node: ir.Node) -> ir.Value:
    x = node.inputs[0]
    if x is None:
        raise NoFormError("has no input")
    return x
