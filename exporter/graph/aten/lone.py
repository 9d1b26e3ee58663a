"""Products and sums with constants that stand alone, as aten calls: layer scales, factors, offsets.

A constant that varies along an axis names the channels. One that is the same everywhere acts on any axis; it is taken where a product
stands next to it, with that one's channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from exporter.graph.abstract import ConstantAffine, Linear, Lone
from exporter.graph.aten.calls import arguments_of, operator_kind, rank_of
from exporter.graph.aten.products import MATRIX_PRODUCTS, PRODUCTS, matrix_product

__all__ = ["LONE_KINDS", "lone_affine"]

LONE_KINDS = {"mul", "add", "sub", "div"}
_PARTS = {"erf", "tanh", "sqrt", "rsqrt", "reciprocal"}
"""Of a GELU or a normalisation in parts: runtimes know the whole by its shape, and make one kernel of it."""
_NOTHING = {"dropout", "clone", "contiguous"}
_STEPS = 3


def lone_affine(node: torch.fx.Node, constants: Mapping[str, str]) -> ConstantAffine | None:
    """Return the role of a product, a sum, a difference or a quotient of a tensor and a constant; None for anything else."""
    call = arguments_of(node)
    if call.get("alpha", 1) != 1 or call.get("rounding_mode") is not None:
        return None
    found = _parts(call, constants)
    if found is None or found[0].meta["val"].shape != node.meta["val"].shape:
        return None
    data, constant, is_first = found
    axis = _varies(constant, rank_of(data)) if isinstance(constant, torch.fx.Node) else -1
    if axis is None or (is_first and operator_kind(node) == "div") or _is_part_of_another(data, constants):
        return None
    axis = axis if axis >= 0 else _axis_beside(node, data, constants)
    channels = data.meta["val"].shape[axis] if 0 <= axis < rank_of(data) else None
    return _made(operator_kind(node), data.name, constant, axis, channels, is_first=is_first) if isinstance(channels, int) else None


def _parts(call: Mapping[str, Any], constants: Mapping[str, str]) -> tuple[torch.fx.Node, torch.fx.Node | float, bool] | None:
    """Return the data, the constant, and whether the constant stands first."""
    one, other = call["self"], call["other"]
    for data, constant, is_first in ((one, other, False), (other, one, True)):
        if not isinstance(data, torch.fx.Node) or data.name in constants or not isinstance(data.meta.get("val"), torch.Tensor):
            continue
        if isinstance(constant, (int, float)) and not isinstance(constant, bool):
            return data, float(constant), is_first
        if isinstance(constant, torch.fx.Node) and constant.name in constants:
            return data, constant, is_first
    return None


def _made(kind: str, data: str, constant: torch.fx.Node | float, axis: int, channels: int, *, is_first: bool) -> ConstantAffine | None:
    """Return the role; ``is_first`` says that the constant stands in front of the data."""
    number, name = (1.0, constant.name) if isinstance(constant, torch.fx.Node) else (constant, None)
    if kind == "mul":
        return ConstantAffine(data, name, None, axis, lone=Lone(channels, factor=number))
    if kind == "div":
        if number == 0.0:
            return None
        return ConstantAffine(data, name, None, axis, lone=Lone(channels, factor=1.0 / number, divides=True))
    sign = -1.0 if kind == "sub" else 1.0
    offset = 0.0 if name is not None else number if is_first else sign * number
    lone = Lone(channels, sign if is_first else 1.0, offset, subtracts=kind == "sub" and not is_first)
    return ConstantAffine(data, None, name, axis, lone=lone)


def _varies(constant: torch.fx.Node, rank: int) -> int | None:
    """Return the axis of a tensor of ``rank`` axes along which a constant varies, -1 where it does not; None where it does along several."""
    shape = constant.meta["val"].shape
    axes = [rank - len(shape) + axis for axis, size in enumerate(shape) if size != 1]
    return None if len(axes) > 1 else axes[0] if axes else -1


def _axis_beside(node: torch.fx.Node, data: torch.fx.Node, constants: Mapping[str, str]) -> int:
    """Return the axis of the channels of the product next to a call, past others of its kind; -1 where there is none."""
    behind = data
    while (before := _data_of(behind, constants)) is not None:
        behind = before
    product = _linear(behind, constants)
    if product is not None:
        return product.output_axis
    while len(node.users) == 1:
        user = next(iter(node.users))
        product = _linear(user, constants)
        if product is not None:
            return product.input_axis if product.data == node.name else -1
        if _data_of(user, constants) is not node:
            return -1
        node = user
    return -1


def _data_of(node: torch.fx.Node, constants: Mapping[str, str]) -> torch.fx.Node | None:
    """Return the data of a call that combines them with a constant of the same shape or less, or does nothing; None for any other call."""
    if node.op != "call_function" or operator_kind(node) not in {*LONE_KINDS, *_NOTHING}:
        return None
    call = arguments_of(node)
    if operator_kind(node) in _NOTHING:
        return node.all_input_nodes[0] if not call.get("train", False) else None
    found = _parts(call, constants)
    return found[0] if found is not None and found[0].meta["val"].shape == node.meta["val"].shape else None


def _linear(node: torch.fx.Node, constants: Mapping[str, str]) -> Linear | None:
    if node.op != "call_function":
        return None
    kind = operator_kind(node)
    if kind in MATRIX_PRODUCTS:
        return matrix_product(node, constants)
    role = PRODUCTS[kind](node, arguments_of(node), node.meta["val"]) if kind in PRODUCTS else None
    return role if isinstance(role, Linear) else None


def _is_part_of_another(data: torch.fx.Node, constants: Mapping[str, str]) -> bool:
    """Return whether what makes the data, within a few steps and behind the last product, is one of the parts that runtimes look for."""
    border = [data]
    for _ in range(_STEPS):
        border = [node for node in border if node.op == "call_function" and _linear(node, constants) is None]
        if any(operator_kind(node) in _PARTS for node in border):
            return True
        border = [given for node in border for given in node.all_input_nodes]
    return False
