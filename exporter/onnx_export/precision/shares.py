"""How much of a model computes in which precision, by number of operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

__all__ = ["HalfValues", "half_values", "precision_shares", "shares_text"]

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_FLOATING = {ir.DataType.DOUBLE: "float64", ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}
_EIGHT_BIT = {ir.DataType.INT8: "int8", ir.DataType.FLOAT8E4M3FN: "fp8"}
_CONVERSIONS = {"Cast", "DequantizeLinear", "QuantizeLinear"}


def precision_shares(model: ir.Model) -> dict[str, float]:
    """Return precision -> share of the operators with a floating output; the shares add up to 1.

    Casts and pairs of QuantizeLinear and DequantizeLinear do not count; what reads two such pairs computes in 8 bits.
    """
    kinds = [
        _eight_bit(node) or _FLOATING[node.outputs[0].dtype]
        for node in model.graph.all_nodes()
        if node.op_type not in _CONVERSIONS and node.outputs and node.outputs[0].dtype in _FLOATING
    ]
    return {kind: count / len(kinds) for kind, count in sorted(Counter(kinds).items())}


def _eight_bit(node: ir.Node) -> str:
    """Return the precision of the pairs that a node's first two inputs come from, empty where they come from elsewhere."""
    producers = [value.producer() if value is not None else None for value in node.inputs[:2]]
    kinds = {
        _EIGHT_BIT.get(producer.inputs[0].dtype, "")
        for producer in producers
        if producer is not None and producer.op_type == "DequantizeLinear" and producer.inputs[0] is not None and producer.inputs[0].dtype is not None
    }
    return kinds.pop() if len(producers) > 1 and all(p is not None and p.op_type == "DequantizeLinear" for p in producers) and len(kinds) == 1 else ""


def shares_text(shares: Mapping[str, float]) -> str:
    """Return ``float16 92 %, float32 8 %``."""
    return ", ".join(f"{name} {share:.0%}".replace("%", " %") for name, share in shares.items())


@dataclass(frozen=True, slots=True)
class HalfValues:
    """What of a float32 model is in half precision after its change, by the names of the float32 model.

    Attributes:
        stored: values stored in half precision.
        computed: of these, the ones that a node in half precision makes.
        constants: modules, or nodes without one, that stay in float32 for a constant beyond half precision.
    """

    stored: frozenset[str]
    computed: frozenset[str]
    constants: frozenset[str] = frozenset()


def half_values(model: ir.Model, islands: Mapping[str, str]) -> HalfValues:
    """Return what is in half precision: a cast's output is called after its input.

    Args:
        model: in half precision.
        islands: node name -> why it stays in float32.
    """
    made = [(node, value.name or "") for node in model.graph for value in node.outputs if value.dtype in _HALVES]
    names = {name: name.removesuffix("/float16").removesuffix("/bfloat16") for _, name in made}
    constants = [node for node in model.graph if islands.get(node.name or "") == "constant"]
    return HalfValues(
        stored=frozenset(names.values()),
        computed=frozenset(names[name] for node, name in made if node.op_type != "Cast"),
        constants=frozenset(node.metadata_props.get("exporter.module") or node.name or "" for node in constants),
    )
