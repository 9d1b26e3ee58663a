"""How much of a model computes in which precision, by number of operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx_ir as ir

__all__ = ["precision_shares", "shares_text", "stored_in_half"]

_FLOATING = {ir.DataType.DOUBLE: "float64", ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}


def precision_shares(model: ir.Model) -> dict[str, float]:
    """Return precision -> share of the operators with a floating output, casts apart; the shares add up to 1."""
    kinds = [
        _FLOATING[node.outputs[0].dtype]
        for node in model.graph.all_nodes()
        if node.op_type != "Cast" and node.outputs and node.outputs[0].dtype in _FLOATING
    ]
    return {kind: count / len(kinds) for kind, count in sorted(Counter(kinds).items())}


def shares_text(shares: Mapping[str, float]) -> str:
    """Return ``float16 92 %, float32 8 %``."""
    return ", ".join(f"{name} {share:.0%}".replace("%", " %") for name, share in shares.items())


def stored_in_half(model: ir.Model) -> frozenset[str]:
    """Return the names that the values in half precision have in the float32 model: a cast's output is called after its input."""
    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    values = [value.name or "" for node in model.graph for value in node.outputs if value.dtype in halves]
    return frozenset(name.removesuffix("/float16").removesuffix("/bfloat16") for name in values)
