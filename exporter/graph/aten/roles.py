"""What the planner knows of the algebra of aten calls: a table from the name of a call to its role."""

from __future__ import annotations

import operator as python_operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from exporter.graph.abstract import BatchNorm, ConstantAffine, Role, Training
from exporter.graph.aten.calls import BATCH_NORMS, arguments_of, each_axis, module_type_of, name_of, operator_kind, rank_of, shape_of
from exporter.graph.aten.lone import LONE_KINDS, lone_affine
from exporter.graph.aten.products import MATRIX_PRODUCTS, PRODUCTS, matrix_product
from exporter.graph.through import Join, KeepsChannels, Maximum, Permutation, PixelShuffle, PositiveHomogeneous, Reshape, Sum, Take

__all__ = ["role_of"]

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_EVERYTHING = (1 << 63) - 1
_SAME = {"alias", "clone", "contiguous", "detach", "lift_fresh_copy", "_assert_tensor_metadata"}
_CASTS = {"to", "_to_copy", "type_as"}
_RESHAPES = {
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
    "_unsafe_view",
    "_reshape_copy",
    "view_copy",
    "squeeze_copy",
    "unsqueeze_copy",
}
_UPSAMPLING = {
    *(
        f"upsample_{mode}{n}d"
        for mode, n in (("nearest", 1), ("nearest", 2), ("nearest", 3), ("linear", 1), ("bilinear", 2), ("bicubic", 2), ("trilinear", 3))
    ),
    *(f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)),
    *(f"_upsample_{mode}2d_aa" for mode in ("bilinear", "bicubic")),
}
_DROPOUTS = {"dropout", "dropout_", "feature_dropout", "feature_dropout_", "alpha_dropout", "feature_alpha_dropout"}
_COPYING_PADS = {f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)} | {"_pad_circular"}


def role_of(node: torch.fx.Node, constants: Mapping[str, str]) -> Role | None:
    """Return the role of an aten call, None where nothing is known of it.

    Args:
        node: the call.
        constants: the placeholders that are constant, with the names of their tensors.
    """
    kind = operator_kind(node)
    if node.target is python_operator.getitem:
        return _item(node)
    if kind in BATCH_NORMS or kind == "instance_norm":
        return _batch_norm(node, kind)
    result = node.meta.get("val")
    if kind in {"split", "split_with_sizes", "chunk", "unsafe_split", "tensor_split"}:
        return _kept(arguments_of(node))
    if not isinstance(result, torch.Tensor) or result.dtype not in _FLOATS:
        return None
    affine = _frozen(node, kind, constants)
    if affine is not None:
        return affine
    if kind in MATRIX_PRODUCTS:
        return matrix_product(node, constants)
    role = _MAKERS[kind](node, arguments_of(node), result) if kind in _MAKERS else None
    return role if role is not None or kind not in LONE_KINDS else lone_affine(node, constants)


def _batch_norm(node: torch.fx.Node, kind: str) -> BatchNorm | None:
    call = arguments_of(node)
    if kind not in {"batch_norm", "instance_norm"}:
        used = {user.args[1] for user in node.users if user.target is python_operator.getitem}
        if used - {0} or len(used) != len(node.users):
            return None  # the saved statistics are read as well
    mean, var = name_of(call["running_mean"]), name_of(call["running_var"])
    training = Training.RUNNING
    if call["use_input_stats"] if kind == "instance_norm" else call.get("training", False):
        training = Training.UNTRACKED if mean is None or var is None else Training.BATCH
    data = name_of(call["input"])
    eps = call.get("eps", call.get("epsilon"))
    if data is None or not isinstance(eps, (int, float)):
        return None
    if kind == "instance_norm" and training is not Training.RUNNING:
        return None  # by design a statistic of each image
    return BatchNorm(data, name_of(call["weight"]), name_of(call["bias"]), mean, var, float(eps), training, axis=1)


def _frozen(node: torch.fx.Node, kind: str, constants: Mapping[str, str]) -> ConstantAffine | None:
    """Recognise ``x * scale + shift`` with a constant of each channel for both."""
    if kind not in {"add", "add_"} or len(node.args) != 2 or node.kwargs.get("alpha", 1) != 1:
        return None
    for product, shift in (node.args, node.args[::-1]):
        if not isinstance(product, torch.fx.Node) or operator_kind(product) != "mul" or not isinstance(shift, torch.fx.Node):
            continue
        if shift.name not in constants or len(product.users) != 1 or product.op != "call_function":
            continue
        for data, scale in (product.args, product.args[::-1]):
            if not isinstance(data, torch.fx.Node) or not isinstance(scale, torch.fx.Node) or scale.name not in constants or data.name in constants:
                continue
            axes = {_channel_axis(scale, rank_of(data)), _channel_axis(shift, rank_of(data))} - {None}
            if not axes and rank_of(data) > 1 and _shape(data)[1] == 1 and min(rank_of(scale), rank_of(shift)) >= rank_of(data) - 1:
                axes = {1}  # a single channel, with a constant that names its axis
            if len(axes) == 1 and _is_per_channel(scale) and _is_per_channel(shift) and _shape(product) == _shape(data) == _shape(node):
                return ConstantAffine(data.name, scale.name, shift.name, axes.pop() or 0, "BatchNorm" in module_type_of(node))
    return None


def _is_per_channel(node: torch.fx.Node) -> bool:
    return len([size for size in node.meta["val"].shape if size != 1]) <= 1


def _channel_axis(node: torch.fx.Node, rank: int) -> int | None:
    """Return the axis of a tensor of ``rank`` axes along which a broadcast constant varies."""
    shape = node.meta["val"].shape
    return next((rank - len(shape) + axis for axis, size in enumerate(shape) if size != 1), None)


def _average(node: torch.fx.Node, call: Mapping[str, Any], result: torch.Tensor) -> Role | None:
    spatial = int(operator_kind(node)[-2])
    pads = any(each_axis(call["padding"], spatial))
    sums_to_one = not (pads and call["count_include_pad"]) and call.get("divisor_override") is None
    return _kept(call, mixed=_last(result, spatial), sums_to_one=sums_to_one)


def _adaptive(node: torch.fx.Node, call: Mapping[str, Any], result: torch.Tensor) -> Role | None:
    return _kept(call, mixed=_last(result, int(operator_kind(node)[-2])))


def _upsampled(node: torch.fx.Node, call: Mapping[str, Any], result: torch.Tensor) -> Role | None:  # noqa: ARG001
    return _kept(call, mixed=_last(result, result.dim() - 2))


def _mean(node: torch.fx.Node, call: Mapping[str, Any], result: torch.Tensor) -> Role | None:  # noqa: ARG001
    rank, axes = rank_of(call["self"]), call.get("dim")
    if not isinstance(axes, (list, tuple)) or call.get("dtype") is not None:
        return None
    mixed = tuple(sorted(axis % rank for axis in axes))
    return _kept(call, mixed=mixed, removed=() if call.get("keepdim") else mixed)


def _padded(node: torch.fx.Node, call: Mapping[str, Any], result: torch.Tensor) -> Role | None:
    kind = operator_kind(node)
    pads = call["pad"]
    if any(not isinstance(size, int) for size in pads):
        return None
    mixed = tuple(result.dim() - 1 - index // 2 for index, size in enumerate(pads) if size)
    mode = "copy" if kind in _COPYING_PADS else call.get("mode", "constant")
    if mode != "constant":
        return _kept(call, mixed=mixed)
    if (call.get("value") or 0) != 0:
        return None
    before = [0] * result.dim()
    for axis, size in enumerate(pads[::2], start=1):
        before[-axis] = size
    only_puts = all(size >= 0 for size in pads)
    return _kept(call, mixed=mixed, sums_to_one=False, zeros_before=tuple(before) if only_puts else ())


def _maximum(node: torch.fx.Node, call: Mapping[str, Any], result: torch.Tensor) -> Role | None:
    data = name_of(call["self"])
    return Maximum(data, _last(result, int(operator_kind(node)[-2]))) if data is not None else None


def _homogeneous(node: torch.fx.Node, call: Mapping[str, Any], result: torch.Tensor) -> Role | None:  # noqa: ARG001
    return PositiveHomogeneous(call["self"].name)


def _permuted(node: torch.fx.Node, call: Mapping[str, Any], result: torch.Tensor) -> Role | None:
    data, rank = name_of(call["self"]), result.dim()
    order = list(range(rank))
    if operator_kind(node) == "permute":
        order = [axis % rank for axis in call["dims"]]
    elif operator_kind(node) == "t":
        order.reverse()
    else:
        names = ("dim0", "dim1") if "dim0" in call else ("axis0", "axis1")
        one, other = (call[name] % rank for name in names)
        order[one], order[other] = order[other], order[one]
    return Permutation(data, tuple(order)) if data is not None else None


def _reshaped(node: torch.fx.Node, call: Mapping[str, Any], result: torch.Tensor) -> Role | None:  # noqa: ARG001
    data = name_of(call["self"])
    if data is None or call["self"].meta["val"].dtype != result.dtype:
        return None
    return Reshape(data, _shape(call["self"]), shape_of(result))


def _shuffled(node: torch.fx.Node, call: Mapping[str, Any], result: torch.Tensor) -> Role | None:  # noqa: ARG001
    data = name_of(call["self"])
    return PixelShuffle(data, call["upscale_factor"], result.dim() - 3) if data is not None else None


def _sliced(node: torch.fx.Node, call: Mapping[str, Any], result: torch.Tensor) -> Role | None:  # noqa: ARG001
    data, axis = call["self"], call["dim"] % rank_of(call["self"])
    size = _shape(data)[axis]
    start, end = call.get("start") or 0, call.get("end")
    if start == 0 and call.get("step", 1) == 1 and (end is None or (isinstance(end, int) and end >= _EVERYTHING)):
        return KeepsChannels(data.name)
    if not isinstance(size, int) or not isinstance(start, int) or not (end is None or isinstance(end, int)) or call.get("step", 1) != 1:
        return None
    begin, stop, _ = slice(start, end).indices(size)
    return Take(data.name, axis, begin, max(begin, stop), size)


def _item(node: torch.fx.Node) -> Role | None:
    """Return the role of one of the parts of a split, or of the first result of a pooling."""
    source, index = node.args[0], node.args[1]
    if not isinstance(source, torch.fx.Node) or not isinstance(index, int):
        return None
    kind = operator_kind(source)
    if kind.endswith("_with_indices") and index == 0:
        return _maximum(source, arguments_of(source), node.meta["val"])
    if kind not in {"split", "split_with_sizes", "chunk", "unsafe_split", "tensor_split"}:
        return None
    call = arguments_of(source)
    rank = rank_of(call["self"])
    axis = call.get("dim", 0) % rank
    size, parts = _shape(call["self"])[axis], source.meta.get("val")
    if not isinstance(size, int) or not isinstance(parts, (list, tuple)):
        return None
    lengths = [part.shape[axis] for part in parts]
    if any(not isinstance(length, int) for length in lengths):
        return None
    begin = sum(lengths[:index])
    return Take(source.name, axis, begin, begin + lengths[index], size)


def _joined(node: torch.fx.Node, call: Mapping[str, Any], result: torch.Tensor) -> Role | None:  # noqa: ARG001
    tensors, axis = call["tensors"], call.get("dim", 0) % result.dim()
    if not all(isinstance(tensor, torch.fx.Node) and tensor.meta["val"].dtype == result.dtype for tensor in tensors):
        return None
    sizes = tuple(_shape(tensor)[axis] for tensor in tensors)
    numbers = tuple(size for size in sizes if isinstance(size, int))
    return Join(tuple(tensor.name for tensor in tensors), axis, numbers) if len(numbers) == len(sizes) else None


def _summed(node: torch.fx.Node, call: Mapping[str, Any], result: torch.Tensor) -> Role | None:
    one, other = call["self"], call["other"]
    if call.get("alpha", 1) != 1 or not isinstance(one, torch.fx.Node):
        return None
    if not isinstance(other, torch.fx.Node):
        return KeepsChannels(one.name) if other == 0 else None
    tensors = (one, other)
    same = all(
        isinstance(item.meta.get("val"), torch.Tensor) and item.meta["val"].dtype == result.dtype and _shape(item) == _shape(node) for item in tensors
    )
    is_difference = operator_kind(node) in {"sub", "sub_"}
    return Sum((one.name, other.name), is_difference) if same and one is not other else None


def _dropped(node: torch.fx.Node, call: Mapping[str, Any], result: torch.Tensor) -> Role | None:  # noqa: ARG001
    return _kept(call) if call.get("train") is False else None


def _copied(node: torch.fx.Node, call: Mapping[str, Any], result: torch.Tensor) -> Role | None:  # noqa: ARG001
    source = call.get("self")
    if isinstance(source, torch.fx.Node) and isinstance(source.meta.get("val"), torch.Tensor) and source.meta["val"].dtype == result.dtype:
        return _kept(call)
    return None


_MAKERS: dict[str, Callable[[torch.fx.Node, Mapping[str, Any], torch.Tensor], Role | None]] = {
    **PRODUCTS,
    **{f"avg_pool{n}d": _average for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": _adaptive for n in (1, 2, 3)},
    **{f"_adaptive_avg_pool{n}d": _adaptive for n in (2, 3)},
    **dict.fromkeys(_UPSAMPLING, _upsampled),
    "mean": _mean,
    **dict.fromkeys(("pad", "constant_pad_nd", *_COPYING_PADS), _padded),
    **{f"max_pool{n}d": _maximum for n in (1, 2, 3)},
    **dict.fromkeys(("relu", "relu_", "leaky_relu", "leaky_relu_", "prelu", "_prelu_kernel", "abs", "abs_"), _homogeneous),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "swapdims", "t"), _permuted),
    **dict.fromkeys(_RESHAPES, _reshaped),
    "pixel_shuffle": _shuffled,
    "slice": _sliced,
    **dict.fromkeys(("cat", "concat", "concatenate"), _joined),
    **dict.fromkeys(("add", "add_", "sub", "sub_"), _summed),
    **dict.fromkeys(_DROPOUTS, _dropped),
    **dict.fromkeys((*_SAME, *_CASTS), _copied),
}


def _kept(
    call: Mapping[str, Any],
    *,
    mixed: tuple[int, ...] = (),
    sums_to_one: bool = True,
    removed: tuple[int, ...] = (),
    zeros_before: tuple[int, ...] = (),
) -> KeepsChannels | None:
    data = name_of(call.get("self", call.get("input")))
    return KeepsChannels(data, mixed, sums_to_one, removed, zeros_before) if data is not None else None


def _last(result: torch.Tensor, count: int) -> tuple[int, ...]:
    return tuple(range(result.dim() - count, result.dim()))


def _shape(node: torch.fx.Node) -> tuple[int | str, ...]:
    return shape_of(node.meta["val"])
