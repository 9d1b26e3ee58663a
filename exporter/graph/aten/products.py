"""What the planner knows of the products among aten calls: convolutions, transposed ones, ``linear``, matrix products."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from exporter.graph.abstract import Linear, Role, Window
from exporter.graph.aten.calls import arguments_of, each_axis, name_of, operator_kind, rank_of

__all__ = ["MATRIX_PRODUCTS", "PRODUCTS", "matrix_product", "numbers_read_by"]

MATRIX_PRODUCTS = {"matmul", "mm", "bmm"}
"""Products of two tensors, of which one may be a weight; they have no place for a bias."""

_CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
_TRANSPOSED = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}


def _linear(node: torch.fx.Node, call: Mapping[str, Any], result: torch.Tensor) -> Role | None:  # noqa: ARG001 - one signature for all
    weight, data = call["weight"], call["input"]
    if rank_of(weight) != 2:
        return None
    return _product(data, weight, call["bias"], weight_axis=0, output_axis=result.dim() - 1, weight_input_axis=1, input_axis=rank_of(data) - 1)


def _addmm(node: torch.fx.Node, call: Mapping[str, Any], result: torch.Tensor) -> Role | None:  # noqa: ARG001
    if call.get("beta", 1) != 1 or call.get("alpha", 1) != 1 or rank_of(call["self"]) != 1 or call["self"].meta["val"].shape[0] != result.shape[1]:
        return None
    return _product(call["mat1"], call["mat2"], call["self"], weight_axis=1, output_axis=1, weight_input_axis=0, input_axis=1)


def matrix_product(node: torch.fx.Node, constants: Collection[str]) -> Linear | None:
    """Return the role of ``x W`` or ``W x`` with a constant matrix, or with one for each of a batch."""
    one, other = node.args[:2]
    if not isinstance(one, torch.fx.Node) or not isinstance(other, torch.fx.Node) or (one.name in constants) == (other.name in constants):
        return None
    is_behind = other.name in constants
    data, weight = (one, other) if is_behind else (other, one)
    rank, axes = rank_of(data), rank_of(weight)
    if rank < 2 or axes not in {2, 3} or (axes == 3 and rank != 3) or rank_of(node) != rank:
        return None
    inner, outer = (axes - 2, axes - 1) if is_behind else (axes - 1, axes - 2)
    along = rank - 1 if is_behind else rank - 2
    return Linear(data.name, weight.name, None, outer, along, inner, along, sees_all=axes == 2, takes_bias=False)


def numbers_read_by(node: torch.fx.Node, constants: Collection[str]) -> tuple[torch.fx.Node | None, torch.fx.Node | None]:
    """Return what a product, or a BatchNorm, reads its weight and its bias from; None for what it has not, or has no place for.

    Args:
        node: the call.
        constants: names of the placeholders that are constant.
    """
    call, kind = arguments_of(node), operator_kind(node)
    if kind == "addmm":
        return call["mat2"], call["self"]
    if kind in MATRIX_PRODUCTS:
        return next((operand for operand in reversed(node.all_input_nodes) if operand.name in constants), None), None
    return call["weight"], call["bias"]


def _convolution(node: torch.fx.Node, call: Mapping[str, Any], result: torch.Tensor) -> Role | None:
    kind = operator_kind(node)
    spatial = _CONVOLUTIONS.get(kind, rank_of(call["weight"]) - 2)
    if kind == "convolution" and call["transposed"]:
        return _transposed(node, call, result)
    sizes = _sizes(call["weight"])
    axis = result.dim() - 1 - spatial
    if sizes is None:
        return None
    kernel = sizes[2:]
    stride, dilation = each_axis(call["stride"], spatial), each_axis(call["dilation"], spatial)
    total = tuple(step * (size - 1) for step, size in zip(dilation, kernel, strict=True)) if call["padding"] == "same" else ()
    halves = tuple(size // 2 for size in total) or (0,) * spatial  # of "same" the larger half stands behind
    padding = halves if isinstance(call["padding"], str) else each_axis(call["padding"], spatial)
    return _product(
        call["input"],
        call["weight"],
        call["bias"],
        weight_axis=0,
        output_axis=axis,
        input_axis=axis,
        groups=call["groups"],
        sees_all=not any((*padding, *total)),
        window=Window(kernel, stride, padding, dilation),
    )


def _transposed(node: torch.fx.Node, call: Mapping[str, Any], result: torch.Tensor) -> Role | None:
    sizes = _sizes(call["weight"])
    if sizes is None:
        return None
    spatial = _TRANSPOSED.get(operator_kind(node), len(sizes) - 2)
    axis = result.dim() - 1 - spatial
    has_one_tap = all(size == 1 for size in (*sizes[2:], *each_axis(call["stride"], spatial)))
    sees_all = has_one_tap and not any((*each_axis(call["padding"], spatial), *each_axis(call["output_padding"], spatial)))
    return _product(
        call["input"],
        call["weight"],
        call["bias"],
        weight_axis=1,
        output_axis=axis,
        weight_input_axis=0,
        input_axis=axis,
        groups=call["groups"],
        is_transposed=True,
        sees_all=sees_all,
        window=Window(sizes[2:], *(each_axis(call[name], spatial) for name in ("stride", "padding", "dilation"))),
    )


def _product(
    data: object,
    weight: object,
    bias: object,
    *,
    weight_axis: int,
    output_axis: int,
    weight_input_axis: int = 1,
    input_axis: int = 1,
    groups: int = 1,
    is_transposed: bool = False,
    sees_all: bool = True,
    window: Window | None = None,
) -> Linear | None:
    names = name_of(data), name_of(weight), name_of(bias)
    if names[0] is None or names[1] is None or (bias is not None and names[2] is None):
        return None
    axes = (weight_axis, output_axis, weight_input_axis, input_axis)
    return Linear(names[0], names[1], names[2], *axes, groups, is_transposed=is_transposed, sees_all=sees_all, window=window)


def _sizes(argument: object) -> tuple[int, ...] | None:
    shape = argument.meta["val"].shape if isinstance(argument, torch.fx.Node) else ()
    return tuple(shape) if shape and all(isinstance(size, int) for size in shape) else None


PRODUCTS: dict[str, Callable[[torch.fx.Node, Mapping[str, Any], torch.Tensor], Role | None]] = {
    **dict.fromkeys((*_CONVOLUTIONS, "convolution"), _convolution),
    **dict.fromkeys(_TRANSPOSED, _transposed),
    "linear": _linear,
    "addmm": _addmm,
}
"""Name of a call -> what reads its role off it, from the node, its arguments by name, and the tensor that it makes."""
