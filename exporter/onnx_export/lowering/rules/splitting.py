"""``Split``: since opset 18 ``num_outputs`` parts may be unequal, the last one smaller; before, unequal sizes are an input.

The sizes of an axis that only a run knows are computed there: each part has ``ceil(size / parts)``, the last one what is left.
"""

from __future__ import annotations

import onnx_ir as ir

from exporter.onnx_export.lowering.making import Maker

__all__ = ["split"]


def split(node: ir.Node, make: Maker, opset: int) -> None:  # noqa: ARG001 - the signature of a rule
    """Write the sizes as an input where they are, or may be, unequal."""
    parts = node.attributes.get_int("num_outputs", 0)
    x = node.inputs[0]
    if not parts or x is None or (len(node.inputs) > 1 and node.inputs[1] is not None):
        return
    del node.attributes["num_outputs"]
    axis = node.attributes.get_int("axis", 0)
    size = None if x.shape is None else x.shape[axis]
    if isinstance(size, int) and size % parts == 0:
        return
    node.resize_inputs(2)
    if isinstance(size, int):
        whole = -(-size // parts)
        node.replace_input_with(1, make.integers([*[whole] * (parts - 1), size - whole * (parts - 1)]))
    else:
        node.replace_input_with(1, _computed_sizes(x, axis, parts, make))


def _computed_sizes(x: ir.Value, axis: int, parts: int, make: Maker) -> ir.Value:
    size = make("Gather", [make("Shape", [x]), make.integers([axis])])
    whole = make("Div", [make("Add", [size, make.integers([parts - 1])]), make.integers([parts])])
    rest = make("Sub", [size, make("Mul", [whole, make.integers([parts - 1])])])
    return make("Concat", [*[whole] * (parts - 1), rest], {"axis": 0})
