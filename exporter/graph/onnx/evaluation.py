"""The operators that constants are computed with: in float64 whatever their floating dtype, in whole numbers as they are.

An operator that is not in the table makes no constant; so nothing here guesses. Above all the quantising ones are not, whose
rounding is meant, and those that draw random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["OPERATORS", "Array", "evaluated", "in_dtype", "widened"]

Array: TypeAlias = NDArray[Any]
_Maker: TypeAlias = "Callable[[ir.Node, Sequence[Array | None], int], Array]"

_LARGEST_ELEMENTS = 1 << 27
"""Of a computed constant; 1 GiB in float64."""

_FLOATS = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
_WHOLE = {
    ir.DataType.INT8: np.int8,
    ir.DataType.INT16: np.int16,
    ir.DataType.INT32: np.int32,
    ir.DataType.INT64: np.int64,
    ir.DataType.UINT8: np.uint8,
    ir.DataType.BOOL: np.bool_,
}


class _NoConstantError(ValueError):
    """These arguments make no constant that can be computed."""


def widened(tensor: ir.TensorProtocol) -> Array | None:
    """Return the numbers of a tensor: float64 for the floating dtypes, else whole numbers; None for any other."""
    if tensor.dtype in _FLOATS:
        return np.asarray(tensor.numpy()).astype(np.float64)
    return np.asarray(tensor.numpy()) if tensor.dtype in _WHOLE else None


def evaluated(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array | None:
    """Return what a node of the table makes of its inputs, None where it cannot be said: arguments that do not fit, or too large.

    Args:
        node: of the ONNX standard, with one output.
        inputs: widened; None for an input that is not given.
        opset: version of the standard that the node is written in.
    """
    try:
        if _num_elements(node, inputs) > _LARGEST_ELEMENTS:
            return None
        with np.errstate(all="ignore"):
            return np.asarray(OPERATORS[node.op_type](node, inputs, opset))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _num_elements(node: ir.Node, inputs: Sequence[Array | None]) -> int:
    """Return how many numbers an operator makes at most, where it may make more than it reads."""
    arrays = [array for array in inputs if array is not None]
    if node.op_type in _BROADCASTING:
        return math.prod(np.broadcast_shapes(*(array.shape for array in arrays)))
    if node.op_type == "Expand":
        return math.prod(np.broadcast_shapes(arrays[0].shape, tuple(int(size) for size in arrays[1])))
    if node.op_type == "ConstantOfShape":
        return math.prod(int(size) for size in arrays[0])
    if node.op_type == "Tile":
        return arrays[0].size * math.prod(int(times) for times in arrays[1])
    if node.op_type == "Range":
        start, limit, delta = (float(array) for array in arrays)
        return math.ceil(abs((limit - start) / delta)) if delta else 0
    if node.op_type == "Gather":
        return arrays[0].size * arrays[1].size
    if node.op_type == "MatMul":
        one, other = arrays
        return one.size * other.size // max(1, min(one.shape[-1], other.shape[-1])) if one.ndim and other.ndim else 0
    return sum(array.size for array in arrays)


def _given(inputs: Sequence[Array | None], position: int) -> Array | None:
    return inputs[position] if position < len(inputs) else None


def _first(inputs: Sequence[Array | None], position: int = 0) -> Array:
    found = _given(inputs, position)
    if found is None:
        raise _NoConstantError(position)
    return found


def _axes(node: ir.Node, inputs: Sequence[Array | None], position: int = 1) -> tuple[int, ...] | None:
    """Return the axes of an operator that has them as an attribute up to some version, and as an input from it on."""
    given = _given(inputs, position)
    if given is not None:
        return tuple(int(axis) for axis in given.reshape(-1))
    axes = node.attributes.get_ints("axes", None)
    return None if axes is None else tuple(axes)


def _two(function: Callable[[Any, Any], Array]) -> _Maker:
    return lambda node, inputs, opset: function(_first(inputs, 0), _first(inputs, 1))  # noqa: ARG005 - the same signature for all


def _one(function: Callable[[Any], Array]) -> _Maker:
    return lambda node, inputs, opset: function(_first(inputs))  # noqa: ARG005


def _quotient(one: Array, other: Array) -> Array:
    if one.dtype.kind == "f":
        return np.asarray(one / other)
    if not np.all(other):
        raise _NoConstantError("a division by zero")
    return np.asarray(np.trunc(np.divide(one, other)).astype(one.dtype))  # whole numbers are divided towards zero


def _power(one: Array, other: Array) -> Array:
    return np.asarray(np.power(one.astype(np.float64), other.astype(np.float64)).astype(one.dtype))


def _cast(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:  # noqa: ARG001
    return in_dtype(_first(inputs), ir.DataType(node.attributes.get_int("to", 0)))


def in_dtype(array: Array, dtype: ir.DataType) -> Array:
    """Return numbers in another dtype, where every floating one is float64.

    Raises:
        ValueError: a whole dtype does not hold one of the numbers.
    """
    if dtype in _FLOATS:
        return array.astype(np.float64)
    if dtype not in _WHOLE:
        raise _NoConstantError(dtype)
    whole: Array = array.astype(_WHOLE[dtype])
    if dtype is not ir.DataType.BOOL and array.dtype.kind != "b" and not np.all(whole == np.trunc(array)):
        raise _NoConstantError("a number that the dtype does not hold")
    return whole


def _filled(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:  # noqa: ARG001
    shape = tuple(int(size) for size in _first(inputs))
    tensor = node.attributes.get_tensor("value", None)
    number = np.zeros(1) if tensor is None else widened(tensor)
    if number is None or number.size != 1:
        raise _NoConstantError("value")
    return np.full(shape, number.reshape(-1)[0])


def _expanded(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:  # noqa: ARG001
    array, shape = _first(inputs), tuple(int(size) for size in _first(inputs, 1))
    return np.broadcast_to(array, np.broadcast_shapes(array.shape, shape)).copy()


def _reshaped(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:  # noqa: ARG001
    array, shape = _first(inputs), [int(size) for size in _first(inputs, 1)]
    if not node.attributes.get_int("allowzero", 0):
        shape = [array.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    return array.reshape(shape)


def _transposed(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:  # noqa: ARG001
    return _first(inputs).transpose(node.attributes.get_ints("perm", None))


def _flattened(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:  # noqa: ARG001
    array, axis = _first(inputs), node.attributes.get_int("axis", 1)
    return array.reshape(math.prod(array.shape[: axis % array.ndim if axis < 0 else axis]), -1)


def _squeezed(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:  # noqa: ARG001
    return np.squeeze(_first(inputs), _axes(node, inputs))


def _unsqueezed(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:  # noqa: ARG001
    return np.expand_dims(_first(inputs), _axes(node, inputs) or ())


def _joined(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:  # noqa: ARG001
    return np.concatenate([_first(inputs, position) for position in range(len(inputs))], node.attributes.get_int("axis", 1))


def _sliced(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:
    array = _first(inputs)
    if opset < 10:
        starts, ends = (list(node.attributes.get_ints(name, ())) for name in ("starts", "ends"))
        axes, steps = _axes(node, (), 0), None
    else:
        starts, ends = ([int(number) for number in _first(inputs, position)] for position in (1, 2))
        axes, given = _axes(node, inputs, 3), _given(inputs, 4)
        steps = None if given is None else [int(step) for step in given]
    cut = [slice(None)] * array.ndim
    for position, axis in enumerate(axes if axes is not None else range(len(starts))):
        cut[axis] = slice(starts[position], ends[position], steps[position] if steps else 1)
    if any((part.step or 1) < 0 for part in cut):
        raise _NoConstantError("a negative step")
    return array[tuple(cut)]


def _gathered(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:  # noqa: ARG001
    return np.asarray(np.take(_first(inputs), _first(inputs, 1), node.attributes.get_int("axis", 0)))


def _ranged(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:  # noqa: ARG001
    return np.arange(*(_first(inputs, position).item() for position in range(3)), dtype=_first(inputs).dtype)


def _selected(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:  # noqa: ARG001
    return np.where(_first(inputs), _first(inputs, 1), _first(inputs, 2))


def _reduced(function: Callable[..., Any]) -> _Maker:
    def reduce(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:  # noqa: ARG001
        array, axes = _first(inputs), _axes(node, inputs)
        if axes is not None and not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
            raise _NoConstantError("no axes")
        return np.asarray(function(array, axis=axes or None, keepdims=bool(node.attributes.get_int("keepdims", 1))))

    return reduce


def _normalised(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:
    """Return a BatchNormalization in eval mode over a constant."""
    if (opset >= 14 and node.attributes.get_int("training_mode", 0) == 1) or sum(bool(value.name) for value in node.outputs) != 1:
        raise _NoConstantError("training")
    array, gamma, beta, mean, var = (_first(inputs, position) for position in range(5))
    along = [1] * array.ndim
    along[1] = -1
    s = gamma / np.sqrt(var + node.attributes.get_float("epsilon", float(np.float32(1e-5))))
    return np.asarray((array - mean.reshape(along)) * s.reshape(along) + beta.reshape(along))


_BROADCASTING: dict[str, _Maker] = {
    "Add": _two(np.add),
    "Sub": _two(np.subtract),
    "Mul": _two(np.multiply),
    "Div": _two(_quotient),
    "Pow": _two(_power),
    "Min": _two(np.minimum),
    "Max": _two(np.maximum),
    "Equal": _two(np.equal),
    "Less": _two(np.less),
    "Greater": _two(np.greater),
    "And": _two(np.logical_and),
    "Or": _two(np.logical_or),
    "Where": _selected,
}

OPERATORS: dict[str, _Maker] = {
    **_BROADCASTING,
    "Identity": _one(lambda array: array),
    "Abs": _one(np.abs),
    "Ceil": _one(np.ceil),
    "Exp": _one(np.exp),
    "Floor": _one(np.floor),
    "Log": _one(np.log),
    "Neg": _one(np.negative),
    "Not": _one(np.logical_not),
    "Reciprocal": _one(np.reciprocal),
    "Sqrt": _one(np.sqrt),
    "Cast": _cast,
    "ConstantOfShape": _filled,
    "Expand": _expanded,
    "Tile": _two(lambda array, times: np.tile(array, tuple(int(each) for each in times))),
    "Reshape": _reshaped,
    "Transpose": _transposed,
    "Flatten": _flattened,
    "Squeeze": _squeezed,
    "Unsqueeze": _unsqueezed,
    "Concat": _joined,
    "Slice": _sliced,
    "Gather": _gathered,
    "Range": _ranged,
    "MatMul": _two(np.matmul),
    "ReduceMean": _reduced(np.mean),
    "ReduceSum": _reduced(np.sum),
    "ReduceProd": _reduced(np.prod),
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
    "ReduceL1": _reduced(lambda array, **how: np.sum(np.abs(array), **how)),
    "ReduceL2": _reduced(lambda array, **how: np.sqrt(np.sum(array * array, **how))),
    "ReduceSumSquare": _reduced(lambda array, **how: np.sum(array * array, **how)),
    "BatchNormalization": _normalised,
}
