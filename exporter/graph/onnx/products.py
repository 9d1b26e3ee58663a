"""Products with the sum behind them that adds their bias: a linear layer over sequences is a MatMul and an Add."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporter.graph.abstract import Linear
from exporter.graph.algebra import Float64
from exporter.graph.onnx.facts import Facts
from exporter.graph.onnx.nodes import is_standard

__all__ = ["AddedBias", "Site", "added_bias", "site_of", "site_of_norm"]


@dataclass(frozen=True, slots=True)
class Site:
    """Where the weight and the bias of a product are read, or gamma and beta of a BatchNorm.

    Attributes:
        node, weight: the node, and the position of the weight among its inputs.
        bias_node, bias: the same of the bias; None where a node that adds it has to be made.
        bias_shape: with -1 for the number of channels.
        dtype: that the numbers are rounded to.
    """

    node: ir.Node
    weight: int
    bias_node: ir.Node | None
    bias: int
    bias_shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True, eq=False)
class AddedBias:
    """An Add that adds a constant of each channel to a product.

    Attributes:
        node, position: the Add, and the position of the constant among its inputs.
        numbers: of shape ``(channels,)``.
    """

    node: ir.Node
    position: int
    numbers: Float64


def added_bias(node: ir.Node, role: Linear, facts: Facts) -> AddedBias | None:
    """Return the Add behind a product without bias that adds one, if nothing else reads the product."""
    made = node.outputs[0]
    uses = made.uses()
    if role.bias is not None or len(uses) != 1 or made.is_graph_output():
        return None
    user, position = next(iter(uses))
    if user.op_type != "Add" or not is_standard(user) or user.graph is not node.graph or len(user.inputs) != 2:
        return None
    shape, weight = facts.shape(made), facts.sizes(node.inputs[_weight_position(node, role)])
    numbers = facts.known.numbers(user.inputs[1 - position])
    if shape is None or weight is None or numbers is None or facts.shape(user.outputs[0]) != shape or numbers.dtype.kind != "f":
        return None
    if numbers.ndim > len(shape) or facts.dtype(user.inputs[1 - position]) != facts.dtype(made):
        return None
    channels = weight[role.weight_axis] * (role.groups if role.is_transposed else 1)
    varies = [len(shape) - numbers.ndim + axis for axis, size in enumerate(numbers.shape) if size != 1]
    if varies and (varies != [role.output_axis] or numbers.size != channels):
        return None
    return AddedBias(user, 1 - position, np.broadcast_to(numbers.reshape(-1), (channels,)).astype(np.float64))


def site_of(node: ir.Node, role: Linear, added: AddedBias | None, facts: Facts) -> Site:
    """Return where weight and bias of a product are read."""
    weight, made = _weight_position(node, role), node.outputs[0]
    dtype = facts.dtype(made)
    aligned = (-1, *[1] * (facts.rank(made) - 1 - role.output_axis))
    if added is not None:
        return Site(node, weight, added.node, added.position, aligned, dtype)
    if node.op_type == "MatMul":
        return Site(node, weight, None, 1, aligned, dtype)
    return Site(node, weight, node, 2, (-1,), dtype)


def site_of_norm(node: ir.Node, facts: Facts) -> Site:
    """Return where gamma and beta of a BatchNorm are read."""
    return Site(node, 1, node, 2, (-1,), facts.dtype(node.inputs[1]))


def _weight_position(node: ir.Node, role: Linear) -> int:
    return 0 if node.inputs[0] is not None and node.inputs[0].name == role.weight else 1
