"""What a graph costs to run: FLOPs and bytes of each operator, from the shapes of what it reads and makes.

    FLOPs   a product: two for each weight that an output sees; a BatchNorm two and anything else one for each number of the larger side
    bytes   what an operator reads and what it writes, weights included; a view moves none

Sizes that are known at run time only count as 1, so a dynamic batch is a batch of one. Nothing is known of what a runtime fuses or
keeps in its caches: each operator reads and writes memory. That is the roofline model: an operator takes as long as its bytes or as its
FLOPs, whichever is longer, and machines differ in how many FLOPs they do while they move a byte.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable

from exporter.artifacts import Cost
from exporter.graph.abstract import AbstractGraph, BatchNorm, ConstantAffine, Linear, Operator, Value
from exporter.graph.rewrites.linear_numbers import LinearNumbers
from exporter.graph.through import KeepsChannels, Permutation, Reshape, Take

__all__ = ["FLOPS_PER_BYTE", "cost_of_graph", "cost_of_operator", "pays", "total_of"]

FLOPS_PER_BYTE = (10, 300)
"""FLOPs that a machine does while it moves a byte: float32 on a CPU (about 1 TFLOP/s beside 100 GB/s), and half precision on the tensor
cores of a GPU (990 TFLOP/s beside 3.35 TB/s on an H100). What adds work has to pay on both."""

_BYTES = {"float64": 8, "int64": 8, "complex64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2, "complex128": 16}
_MATRIX_PRODUCTS = {"matmul", "mm", "bmm", "baddbmm", "addmm", "addbmm"}
_ATTENTION = "scaled_dot_product_attention"


def total_of(costs: Iterable[Cost]) -> Cost:
    """Return the sum of costs."""
    flops = moved = 0
    for cost in costs:
        flops, moved = flops + cost.flops, moved + cost.bytes
    return Cost(flops, moved)


def cost_of_graph(graph: AbstractGraph) -> Cost:
    """Return what all operators cost."""
    return total_of(cost for operator in graph.operators.values() for cost in cost_of_operator(graph, operator))


def cost_of_operator(graph: AbstractGraph, operator: Operator, numbers: LinearNumbers | None = None) -> tuple[Cost, ...]:
    """Return what an operator costs, with these numbers where it is linear: its own cost, and that of the calls that they add."""
    if _is_view(operator):
        return ()
    role, output = operator.role, graph.values[operator.output]
    inputs = [graph.values[name] for name in dict.fromkeys(operator.inputs) if name in graph.values]
    moved, count = _bytes(output), _count(output.shape)
    for value in inputs:
        moved += _bytes(value)
        if not value.is_constant:
            count = max(count, _count(value.shape))
    if isinstance(role, Linear):
        return _linear(graph, operator, role, moved, numbers)
    if isinstance(role, BatchNorm) or (isinstance(role, ConstantAffine) and role.lone is None):
        return (Cost(2 * count, moved),)
    if operator.kind.lower() in _MATRIX_PRODUCTS and len(inputs) >= 2:
        inner = next((value.shape[-1] for value in inputs if value.shape), 1)
        return (Cost(2 * _count(output.shape) * _number(inner), moved),)
    if operator.kind == _ATTENTION and len(inputs) >= 3 and all(len(value.shape) >= 2 for value in inputs[:3]):
        query, keys = inputs[0], inputs[1]
        return (Cost(4 * _count(query.shape) * _number(keys.shape[-2]), moved),)
    return (Cost(count, moved),)


def pays(before: Iterable[Cost], after: Iterable[Cost]) -> bool:
    """Return whether ``after`` takes less time than ``before``, on every kind of machine."""
    old, new = list(before), list(after)
    return all(_time(new, per_byte) < _time(old, per_byte) for per_byte in FLOPS_PER_BYTE)


def _time(costs: Iterable[Cost], flops_per_byte: int) -> float:
    """Return the time of operators one after the other, in the time of a byte."""
    return sum(max(cost.bytes, cost.flops / flops_per_byte) for cost in costs)


def _linear(graph: AbstractGraph, operator: Operator, role: Linear, moved: int, numbers: LinearNumbers | None) -> tuple[Cost, ...]:
    weight, output, data = graph.values[role.weight], graph.values[operator.output], graph.values[role.data]
    size, made = _item_size(output.dtype), _count(output.shape)
    side = _count(data.shape) if role.is_transposed else made  # each number of it meets the weights of one channel
    channels = _number(weight.shape[0]) if role.is_transposed else _number(weight.shape[role.weight_axis]) if weight.shape else 1
    taps = _count(weight.shape) // max(channels, 1)
    if role.window is None and len(weight.shape) > 2:
        taps = _number(weight.shape[role.weight_input_axis])  # a batch of matrices
    has_bias = role.bias is not None or (numbers is not None and numbers.bias is not None)
    is_added = has_bias and role.bias is None and not role.takes_bias
    flops = 2 * side * taps + made * (has_bias and not is_added)
    moved += channels * size if has_bias and role.bias is None and not is_added else 0
    costs = [Cost(made, (2 * made + channels) * size)] if is_added else []
    if numbers is not None and numbers.ones is not None:
        per_group = _number(data.shape[role.input_axis]) // role.groups
        place = _count(data.shape) // max(per_group, 1)  # what a channel of each group has
        grown = _count(data.shape) + place
        costs.append(Cost(grown, (_count(data.shape) + grown) * size))
        flops += 2 * (place * taps if role.is_transposed else made * numbers.ones[0].size)
        moved += (place + numbers.ones.size) * size
    costs.append(Cost(flops, moved))
    if numbers is not None and numbers.border is not None:
        costs.append(Cost(made, (2 * made + numbers.border.size) * size))
    return tuple(costs)


def _is_view(operator: Operator) -> bool:
    role = operator.role
    if isinstance(role, KeepsChannels) and not role.mixed and not role.removed:
        return True  # a dropout in eval mode, a copy of nothing but its name, a split
    return isinstance(role, (Permutation, Reshape, Take)) or (operator.alias_of is not None and not operator.writes)


def _bytes(value: Value) -> int:
    return _count(value.shape) * _item_size(value.dtype) if value.dtype else 0


def _item_size(dtype: str) -> int:
    return _BYTES.get(dtype, 1)


@functools.lru_cache(maxsize=1024)
def _count(shape: tuple[int | str, ...]) -> int:
    return math.prod(map(_number, shape))


def _number(size: int | str) -> int:
    """Return a size as a number; what is known at run time only counts as 1 in it."""
    return size if isinstance(size, int) else math.prod(int(factor) for factor in re.findall(r"(?<![\w.])\d+(?=\*)", size.replace(" ", "")))
