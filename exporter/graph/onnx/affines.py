"""Chains of products and sums with constants of each channel, which are one map ``s x + t``: a BatchNorm in parts, or a part alone.

What stands alone, a layer scale or a factor, is a map too. Where its constants are the same everywhere it acts on any axis: it is taken
where a product stands next to it, with that one's channels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from exporter.graph.abstract import Linear
from exporter.graph.algebra import Float64
from exporter.graph.onnx.constants import FLOATS
from exporter.graph.onnx.facts import Facts
from exporter.graph.onnx.nodes import is_standard, module_type_of
from exporter.graph.onnx.roles import role_of

__all__ = ["Chain", "chains_in"]

_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_PARTS = {"Erf", "Tanh", "Sqrt", "Reciprocal"}
"""Of a GELU or a normalisation in parts: runtimes know the whole by its shape, and make one kernel of it."""
_NOTHING = {"Identity", "Dropout"}
_STEPS = 3
_CALLED_NORM = re.compile(r"batch_?norm", re.IGNORECASE)


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """Nodes in a row, each read by the next alone.

    Attributes:
        data: what the first reads.
        axis: along which the constants vary, None where none does.
        s, t: of the whole; of shape ``(channels,)`` or ``(1,)``.
        scales, shifts: whether there is a product, and a sum, in it.
        is_lone: it looks like no BatchNorm.
    """

    nodes: tuple[ir.Node, ...]
    data: ir.Value
    axis: int | None
    s: Float64
    t: Float64
    scales: bool
    shifts: bool
    is_lone: bool = False

    @property
    def is_batch_norm(self) -> bool:
        """Return whether the file calls it one."""
        if self.is_lone:
            return False
        names = (text for node in self.nodes for text in (module_type_of(node), node.name or "", node.outputs[0].name or ""))
        return any(_CALLED_NORM.search(name) for name in names)


def chains_in(nodes: Iterable[ir.Node], facts: Facts, taken: set[ir.Node]) -> Iterator[Chain]:
    """Yield the chains, each as long as it can be; those without a product or without a sum are lone.

    Args:
        nodes: in the order of execution.
        facts: what is known of the model.
        taken: nodes that are part of something else.
    """
    open_chains: dict[ir.Value, Chain] = {}
    for node in nodes:
        step = _step(node, facts) if node not in taken else None
        if step is None:
            continue
        before = open_chains.get(step.data)
        if before is not None and len(step.data.uses()) == 1 and not step.data.is_graph_output() and _same_axis(before, step):
            del open_chains[step.data]
            step = _composed(before, step)
        open_chains[node.outputs[0]] = step
    for chain in open_chains.values():
        found = chain if chain.scales and chain.shifts and chain.axis is not None and len(chain.nodes) > 1 else _lone(chain, facts)
        if found is not None:
            yield found


def _lone(chain: Chain, facts: Facts) -> Chain | None:
    """Return a chain that looks like no BatchNorm with one number for each channel; None where it adds zeros, or nobody can take it."""
    if (not chain.scales and not np.any(chain.t)) or _is_part_of_another(chain.data, facts):
        return None
    axis = _axis_beside(chain, facts) if chain.axis is None else chain.axis
    shape = facts.shape(chain.data) or ()
    size = shape[axis] if axis is not None and axis < len(shape) else None
    if axis is None or not isinstance(size, int):
        return None
    return replace(chain, axis=axis, s=np.broadcast_to(chain.s, (size,)), t=np.broadcast_to(chain.t, (size,)), is_lone=True)


def _axis_beside(chain: Chain, facts: Facts) -> int | None:
    """Return the axis of the channels of the product next to a chain, in front of it or behind it."""
    source, made = chain.data.producer(), chain.nodes[-1].outputs[0]
    while source is not None and source.op_type in _NOTHING and source.inputs[0] is not None:
        source = source.inputs[0].producer()
    before = _product(source, facts)
    if before is not None:
        return before.output_axis
    user = _reader(made)
    while user is not None and user.op_type in _NOTHING:
        made = user.outputs[0]
        user = _reader(made)
    behind = _product(user, facts) if user is not None and user.op_type in _PRODUCTS else None
    return behind.input_axis if behind is not None and behind.data == made.name else None


def _reader(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads a value."""
    uses = value.uses()
    return next(iter(uses))[0] if len(uses) == 1 else None


def _product(node: ir.Node | None, facts: Facts) -> Linear | None:
    """Return the role of a product, or of the one whose bias a sum adds."""
    if node is not None and node.op_type == "Add":
        node = next((made for value in node.inputs if value is not None and (made := value.producer()) is not None), None)
    role = role_of(node, 0, facts) if node is not None and node.op_type in _PRODUCTS else None
    return role if isinstance(role, Linear) else None


def _is_part_of_another(data: ir.Value, facts: Facts) -> bool:
    """Return whether what makes the data, within a few steps and behind the last product, is one of the parts that runtimes look for."""
    border: list[ir.Value | None] = [data]
    for _ in range(_STEPS):
        nodes = [node for value in border if value is not None and value not in facts.known and (node := value.producer()) is not None]
        nodes = [node for node in nodes if node.op_type not in _PRODUCTS]
        if any(node.op_type in _PARTS for node in nodes):
            return True
        border = [value for node in nodes for value in node.inputs]
    return False


def _step(node: ir.Node, facts: Facts) -> Chain | None:
    if node.op_type not in {"Mul", "Add", "Sub", "Div"} or not is_standard(node) or facts.dtype(node.outputs[0]) not in FLOATS:
        return None
    for position, constant in enumerate(node.inputs):
        data, numbers = node.inputs[1 - position], facts.known.numbers(constant)
        if numbers is None or data is None or data in facts.known or numbers.dtype.kind != "f":
            continue
        shape = facts.shape(data)
        varies = [axis for axis, size in enumerate(numbers.shape) if size != 1]
        if shape is None or facts.shape(node.outputs[0]) != shape or numbers.ndim > len(shape) or len(varies) > 1:
            return None
        axis = len(shape) - numbers.ndim + varies[0] if varies else None
        return _of_one(node, data, axis, numbers.reshape(-1), is_first=position == 0)
    return None


def _of_one(node: ir.Node, data: ir.Value, axis: int | None, numbers: Float64, *, is_first: bool) -> Chain | None:
    """Return the map of one node; ``is_first`` says that the constant stands in front of the data."""
    ones, zeros = np.ones_like(numbers), np.zeros_like(numbers)
    if node.op_type == "Add":
        return Chain((node,), data, axis, ones, numbers, scales=False, shifts=True)
    if node.op_type == "Mul":
        return Chain((node,), data, axis, numbers, zeros, scales=True, shifts=False)
    if node.op_type == "Sub":
        return Chain((node,), data, axis, -ones if is_first else ones, numbers if is_first else -numbers, scales=is_first, shifts=True)
    if is_first:
        return None  # a constant divided by the data
    with np.errstate(divide="ignore"):
        return Chain((node,), data, axis, 1.0 / numbers, zeros, scales=True, shifts=False)


def _same_axis(one: Chain, other: Chain) -> bool:
    return one.axis is None or other.axis is None or (one.axis == other.axis and one.s.size == other.s.size)


def _composed(one: Chain, other: Chain) -> Chain:
    """Return ``other`` after ``one``."""
    axis = one.axis if one.axis is not None else other.axis
    with np.errstate(invalid="ignore", over="ignore"):
        s, t = other.s * one.s, other.s * one.t + other.t
    nodes = (*one.nodes, *other.nodes)
    return Chain(nodes, one.data, axis, s, t, scales=one.scales or other.scales, shifts=one.shifts or other.shifts)
