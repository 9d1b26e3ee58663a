"""What the planner knows of the algebra of ONNX operators: a table from the name of an operator to its role."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from exporter.graph.abstract import BatchNorm, Linear, Role, Training
from exporter.graph.onnx.constants import FLOATS
from exporter.graph.onnx.facts import Facts
from exporter.graph.onnx.nodes import is_standard
from exporter.graph.onnx.windows import paddings_of, window_of
from exporter.graph.through import Join, KeepsChannels, Maximum, Permutation, PixelShuffle, PositiveHomogeneous, Reshape, Sum, Take

__all__ = ["role_of"]


def role_of(node: ir.Node, number: int, facts: Facts) -> Role | None:
    """Return the role of a node, None where nothing is known of it.

    Args:
        node: the node.
        number: which of its outputs the role is about.
        facts: what is known of the model.
    """
    if not is_standard(node) or not node.inputs or node.inputs[0] is None:
        return None
    if node.op_type == "SplitToSequence":
        return KeepsChannels(_name(node.inputs[0]))
    if facts.dtype(node.outputs[number]) not in FLOATS:
        return None
    if node.op_type == "Split":
        return _split(node, number, facts)
    maker = _MAKERS.get(node.op_type)
    return maker(node, facts) if maker is not None and number == 0 else None


def _name(value: ir.Value | None) -> str:
    return (value.name or "") if value is not None else ""


def _convolution(node: ir.Node, facts: Facts) -> Role | None:
    sizes = facts.sizes(node.inputs[1])
    if sizes is None or len(sizes) < 3:
        return None
    kernel = sizes[2:]
    paddings = paddings_of(node, facts.shape(node.inputs[0]), kernel)
    bias = _name(node.inputs[2]) if facts.is_given(node, 2) else None
    return Linear(
        _name(node.inputs[0]),
        _name(node.inputs[1]),
        bias,
        weight_axis=0,
        output_axis=1,
        groups=node.attributes.get_int("group", 1),
        sees_all=paddings is not None and not any((*paddings[0], *paddings[1])),
        window=None if paddings is None else window_of(node, kernel, paddings[0]),
    )


def _transposed(node: ir.Node, facts: Facts) -> Role | None:
    sizes = facts.sizes(node.inputs[1])
    if sizes is None or len(sizes) < 3:
        return None
    kernel = sizes[2:]
    paddings = paddings_of(node, None, kernel)
    strides, extra = (tuple(node.attributes.get_ints(name, ())) for name in ("strides", "output_padding"))
    is_placed = paddings is not None and "output_shape" not in node.attributes  # else the padding follows from sizes
    has_one_tap = all(size == 1 for size in (*kernel, *strides)) and not any(extra)
    return Linear(
        _name(node.inputs[0]),
        _name(node.inputs[1]),
        _name(node.inputs[2]) if facts.is_given(node, 2) else None,
        weight_axis=1,
        output_axis=1,
        weight_input_axis=0,
        groups=node.attributes.get_int("group", 1),
        is_transposed=True,
        sees_all=has_one_tap and is_placed and paddings is not None and not any((*paddings[0], *paddings[1])),
        window=window_of(node, kernel, paddings[0]) if is_placed and paddings is not None else None,
    )


def _gemm(node: ir.Node, facts: Facts) -> Role | None:
    """Return the role of a plain ``x W + b``; one that scales is left alone."""
    attributes = node.attributes
    weight = node.inputs[1]
    sizes = facts.sizes(weight)
    if attributes.get_float("alpha", 1.0) != 1.0 or attributes.get_float("beta", 1.0) != 1.0 or weight is None or sizes is None:
        return None
    axis = 0 if attributes.get_int("transB", 0) else 1
    bias = node.inputs[2] if facts.is_given(node, 2) else None
    if bias is not None and facts.sizes(bias) != (sizes[axis],):
        return None
    input_axis = 0 if attributes.get_int("transA", 0) else 1
    return Linear(_name(node.inputs[0]), _name(weight), None if bias is None else _name(bias), axis, 1, 1 - axis, input_axis)


def _matmul(node: ir.Node, facts: Facts) -> Role | None:
    one, other = node.inputs[0], node.inputs[1]
    rank = facts.rank(node.outputs[0])
    if one is None or other is None or rank < 2:
        return None
    is_behind = other in facts.known
    data, weight = (one, other) if is_behind else (other, one)
    axes = facts.rank(weight)
    if weight not in facts.known or data in facts.known or facts.rank(data) != rank or axes not in {2, 3} or (axes == 3 and rank != 3):
        return None
    inner, outer = (axes - 2, axes - 1) if is_behind else (axes - 1, axes - 2)
    along = rank - 1 if is_behind else rank - 2
    return Linear(_name(data), _name(weight), None, outer, along, inner, along, sees_all=axes == 2, takes_bias=False)


def _batch_norm(node: ir.Node, facts: Facts) -> Role | None:
    if len(node.inputs) < 5:
        return None
    makes_statistics = any(value.name for value in node.outputs[1:])
    is_training = makes_statistics or (facts.opset >= 14 and bool(node.attributes.get_int("training_mode", 0)))
    if any(facts.rank(value) not in {1, -1} for value in node.inputs[1:5]) or not node.attributes.get_int("spatial", 1):
        return None
    data, gamma, beta, mean, var = (_name(value) for value in node.inputs[:5])
    eps = float(node.attributes.get_float("epsilon", float(np.float32(1e-5))))
    training = Training.BATCH if is_training else Training.RUNNING
    if not is_training and _is_mean_of(node.inputs[3], node.inputs[0]):
        training = Training.UNTRACKED
    return BatchNorm(data, gamma, beta, mean, var, eps, training, axis=1)


def _is_mean_of(value: ir.Value | None, data: ir.Value | None) -> bool:
    """Return whether a statistic is computed from the data themselves: so torch's exporter writes a BatchNorm that keeps none."""
    node = None if value is None else value.producer()
    return node is not None and node.op_type == "ReduceMean" and node.inputs[0] is data


def _average(node: ir.Node, facts: Facts) -> Role | None:
    kernel = tuple(node.attributes.get_ints("kernel_shape", ()))
    shape, rank = facts.shape(node.inputs[0]), facts.rank(node.outputs[0])
    if not kernel or shape is None:
        return None
    paddings = paddings_of(node, shape, kernel)
    pads = paddings is None or any((*paddings[0], *paddings[1]))
    counts = bool(node.attributes.get_int("count_include_pad", 0))
    overhangs = bool(node.attributes.get_int("ceil_mode", 0)) and not _fits(node, shape, kernel)
    return KeepsChannels(_name(node.inputs[0]), tuple(range(rank - len(kernel), rank)), sums_to_one=not counts or not (pads or overhangs))


def _fits(node: ir.Node, shape: tuple[int | str, ...], kernel: tuple[int, ...]) -> bool:
    """Return whether windows without padding end where the data end; runtimes disagree on what an overhanging one divides by."""
    strides = tuple(node.attributes.get_ints("strides", ())) or (1,) * len(kernel)
    return all(
        stride == 1 or (isinstance(size, int) and (size - taps) % stride == 0) for size, taps, stride in zip(shape[2:], kernel, strides, strict=True)
    )


def _global_average(node: ir.Node, facts: Facts) -> Role | None:
    rank = facts.rank(node.inputs[0])
    return KeepsChannels(_name(node.inputs[0]), tuple(range(2, rank))) if rank > 2 else None


def _mean(node: ir.Node, facts: Facts) -> Role | None:
    rank = facts.rank(node.inputs[0])
    axes = facts.integers(node, "axes", 1)
    if rank < 0 or (axes is None and facts.is_given(node, 1)):
        return None
    if not axes:
        if node.attributes.get_int("noop_with_empty_axes", 0):
            return None
        axes = tuple(range(rank))
    mixed = tuple(sorted(axis % rank for axis in axes))
    return KeepsChannels(_name(node.inputs[0]), mixed, removed=() if node.attributes.get_int("keepdims", 1) else mixed)


def _padded(node: ir.Node, facts: Facts) -> Role | None:
    rank, pads = facts.rank(node.inputs[0]), facts.integers(node, "pads", 1)
    if rank < 0 or pads is None:
        return None
    axes = facts.known.integers(node.inputs[3]) if facts.is_given(node, 3) else tuple(range(rank))
    if axes is None or len(pads) != 2 * len(axes):
        return None
    sizes = {axis % rank: (pads[place], pads[place + len(axes)]) for place, axis in enumerate(axes)}
    mixed = tuple(sorted(axis for axis, size in sizes.items() if any(size)))
    mode = node.attributes.get_string("mode", "constant") or "constant"
    if mode in {"reflect", "edge", "wrap"}:
        return KeepsChannels(_name(node.inputs[0]), mixed)
    if mode != "constant" or _padding_value(node, facts) != 0.0:
        return None
    if not any(number > 0 for size in sizes.values() for number in size):
        return KeepsChannels(_name(node.inputs[0]), mixed)
    only_puts = all(number >= 0 for size in sizes.values() for number in size)
    before = tuple(sizes.get(axis, (0, 0))[0] for axis in range(rank)) if only_puts else ()
    return KeepsChannels(_name(node.inputs[0]), mixed, sums_to_one=False, zeros_before=before)


def _padding_value(node: ir.Node, facts: Facts) -> float | None:
    if facts.opset < 11:
        return float(node.attributes.get_float("value", 0.0))
    if not facts.is_given(node, 2):
        return 0.0
    number = facts.known.numbers(node.inputs[2])
    return float(number.reshape(-1)[0]) if number is not None and number.size == 1 else None


def _resized(node: ir.Node, facts: Facts) -> Role | None:
    """Return the role of an upsampling or downsampling whose weights sum to one; along an axis of scale 1 it does nothing."""
    before, after = facts.shape(node.inputs[0]), facts.shape(node.outputs[0])
    attributes = node.attributes
    mode = attributes.get_string("mode", "nearest")
    transform = attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if before is None or after is None or len(before) != len(after):
        return None
    if transform == "tf_crop_and_resize" or mode not in {"nearest", "linear", "cubic"}:
        return None
    if transform == "tf_half_pixel_for_nn" or (mode == "nearest" and attributes.get_string("nearest_mode", "round_prefer_floor") == "ceil"):
        return None  # an axis of scale 1 would be shifted
    rank = len(before)
    if node.op_type == "Resize" and facts.is_given(node, 3):
        return KeepsChannels(_name(node.inputs[0]), tuple(axis for axis in range(rank) if before[axis] != after[axis]))
    scales = _scales(node, facts)
    axes = tuple(attributes.get_ints("axes", ())) or tuple(range(rank))
    if scales is None or len(scales) != len(axes):
        return None
    return KeepsChannels(_name(node.inputs[0]), tuple(sorted(axis % rank for axis, scale in zip(axes, scales, strict=True) if scale != 1.0)))


def _scales(node: ir.Node, facts: Facts) -> tuple[float, ...] | None:
    if node.op_type == "Upsample" and "scales" in node.attributes:
        return tuple(node.attributes.get_floats("scales", ()))
    position = 1 if node.op_type == "Upsample" or facts.opset < 11 else 2
    found = facts.known.numbers(node.inputs[position]) if facts.is_given(node, position) else None
    return None if found is None else tuple(float(scale) for scale in found.reshape(-1))


def _maximum(node: ir.Node, facts: Facts) -> Role | None:
    rank = facts.rank(node.inputs[0])
    return Maximum(_name(node.inputs[0]), tuple(range(2, rank))) if rank > 2 else None


def _homogeneous(node: ir.Node, facts: Facts) -> Role | None:
    """Return the role of a function that a positive factor passes; the slopes of a PRelu are factors of its data."""
    if node.op_type == "PRelu" and node.inputs[1] not in facts.known:
        return None
    return PositiveHomogeneous(_name(node.inputs[0]))


def _permuted(node: ir.Node, facts: Facts) -> Role | None:
    rank = facts.rank(node.inputs[0])
    order = tuple(node.attributes.get_ints("perm", ())) or tuple(reversed(range(rank)))
    return Permutation(_name(node.inputs[0]), order) if rank == len(order) else None


def _reshaped(node: ir.Node, facts: Facts) -> Role | None:
    before, after = facts.shape(node.inputs[0]), facts.shape(node.outputs[0])
    return Reshape(_name(node.inputs[0]), before, after) if before is not None and after is not None else None


def _shuffled(node: ir.Node, facts: Facts) -> Role | None:
    rank, factor = facts.rank(node.inputs[0]), node.attributes.get_int("blocksize", 0)
    if rank != 4 or factor < 1:
        return None
    is_depth_first = node.attributes.get_string("mode", "DCR") == "DCR"
    return PixelShuffle(_name(node.inputs[0]), factor, 1, is_depth_first)


def _sliced(node: ir.Node, facts: Facts) -> Role | None:
    shape = facts.shape(node.inputs[0])
    starts, ends, axes = (facts.integers(node, name, position) for position, name in enumerate(("starts", "ends", "axes"), 1))
    if shape is None or starts is None or ends is None or (axes is None and facts.is_given(node, 3)):
        return None
    steps = facts.known.integers(node.inputs[4]) if facts.is_given(node, 4) else (1,) * len(starts)
    if steps is None or any(step != 1 for step in steps):
        return None
    axes = tuple(range(len(starts))) if axes is None else axes
    taken: dict[int, slice] = {}
    for axis, start, end in zip(axes, starts, ends, strict=True):
        if start != 0 or end < _EVERYTHING:
            taken[axis % len(shape)] = slice(start, end)
    if not taken:
        return KeepsChannels(_name(node.inputs[0]))
    if len(taken) > 1:
        return KeepsChannels(_name(node.inputs[0]), tuple(sorted(taken)))  # of each channel a part
    axis, part = taken.popitem()
    size = shape[axis]
    if not isinstance(size, int):
        return None
    begin, stop, _ = part.indices(size)
    return Take(_name(node.inputs[0]), axis, begin, max(begin, stop), size)


def _gathered(node: ir.Node, facts: Facts) -> Role | None:
    """Return the role of a gathering of neighbours in order, which is a slice."""
    shape, indices = facts.shape(node.inputs[0]), facts.known.numbers(node.inputs[1])
    if shape is None or indices is None or indices.ndim != 1 or indices.size == 0:
        return None
    axis = node.attributes.get_int("axis", 0) % len(shape)
    size, begin = shape[axis], int(indices[0])
    if not isinstance(size, int) or begin < 0 or [int(index) for index in indices] != list(range(begin, begin + indices.size)):
        return None
    return Take(_name(node.inputs[0]), axis, begin, begin + indices.size, size)


def _split(node: ir.Node, number: int, facts: Facts) -> Role | None:
    shape = facts.shape(node.inputs[0])
    if shape is None:
        return None
    axis = node.attributes.get_int("axis", 0) % len(shape)
    lengths = [part[axis] for value in node.outputs if (part := facts.shape(value)) is not None]
    return _part(_name(node.inputs[0]), axis, shape[axis], tuple(lengths), number) if len(lengths) == len(node.outputs) else None


def _item(node: ir.Node, facts: Facts) -> Role | None:
    """Return the role of one part of a SplitToSequence."""
    source, index = node.inputs[0], facts.known.integers(node.inputs[1])
    split = None if source is None else source.producer()
    if source is None or split is None or split.op_type != "SplitToSequence" or index is None or len(index) != 1:
        return None
    shape, given = facts.shape(split.inputs[0]), facts.known.numbers(split.inputs[1]) if facts.is_given(split, 1) else None
    if shape is None or given is None:
        return None
    axis = split.attributes.get_int("axis", 0) % len(shape)
    size = shape[axis]
    if not isinstance(size, int):
        return None
    chunk = int(given.reshape(-1)[0])
    lengths = tuple(int(length) for length in given) if given.ndim else tuple(min(chunk, size - begin) for begin in range(0, size, max(chunk, 1)))
    return _part(_name(source), axis, size, lengths, index[0] % max(len(lengths), 1))


def _part(data: str, axis: int, size: int | str, lengths: tuple[int | str, ...], number: int) -> Take | None:
    numbers = [length for length in lengths if isinstance(length, int)]
    if not isinstance(size, int) or len(numbers) != len(lengths) or sum(numbers) != size or number >= len(numbers):
        return None
    begin = sum(numbers[:number])
    return Take(data, axis, begin, begin + numbers[number], size)


def _joined(node: ir.Node, facts: Facts) -> Role | None:
    rank = facts.rank(node.outputs[0])
    if rank < 0:
        return None
    axis = node.attributes.get_int("axis", 1) % rank
    shapes = [facts.shape(value) for value in node.inputs]
    sizes = tuple(shape[axis] for shape in shapes if shape is not None)
    numbers = tuple(size for size in sizes if isinstance(size, int))
    return Join(tuple(_name(value) for value in node.inputs), axis, numbers) if len(numbers) == len(node.inputs) else None


def _summed(node: ir.Node, facts: Facts) -> Role | None:
    """Return the role of a sum of two values of one shape; a sum with zero does nothing."""
    result = facts.shape(node.outputs[0])
    if result is None or any(value is None for value in node.inputs):
        return None
    if len(node.inputs) == 1:
        return KeepsChannels(_name(node.inputs[0]))
    is_difference = node.op_type == "Sub"
    for data, other in zip(node.inputs, reversed(node.inputs), strict=True):
        is_zero = other in facts.known and (numbers := facts.known.numbers(other)) is not None and not numbers.any()
        if is_zero and data not in facts.known and facts.shape(data) == result and not (is_difference and data is node.inputs[1]):
            return KeepsChannels(_name(data))
    one, other = node.inputs[0], node.inputs[1]
    if len(node.inputs) != 2 or one is other or facts.shape(one) != result or facts.shape(other) != result:
        return None
    return Sum((_name(one), _name(other)), is_difference)


def _same(node: ir.Node, facts: Facts) -> Role | None:
    same = facts.dtype(node.inputs[0]) == facts.dtype(node.outputs[0])
    return KeepsChannels(_name(node.inputs[0])) if same else None


def _dropped(node: ir.Node, facts: Facts) -> Role | None:
    if facts.is_given(node, 2):
        training = facts.known.numbers(node.inputs[2])
        if training is None or training.any():
            return None
    return KeepsChannels(_name(node.inputs[0]))


_EVERYTHING = 2**31 - 1
"""From this end on a slice goes to the end, whatever the size."""

_MAKERS: dict[str, Callable[[ir.Node, Facts], Role | None]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "AveragePool": _average,
    "GlobalAveragePool": _global_average,
    "ReduceMean": _mean,
    "Pad": _padded,
    **dict.fromkeys(("Resize", "Upsample"), _resized),
    "MaxPool": _maximum,
    **dict.fromkeys(("Relu", "LeakyRelu", "PRelu", "Abs"), _homogeneous),
    "Transpose": _permuted,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshaped),
    "DepthToSpace": _shuffled,
    "Slice": _sliced,
    "Gather": _gathered,
    "SequenceAt": _item,
    "Concat": _joined,
    **dict.fromkeys(("Add", "Sub", "Sum"), _summed),
    **dict.fromkeys(("Identity", "Cast", "CastLike"), _same),
    "Dropout": _dropped,
}
