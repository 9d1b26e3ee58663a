"""Folds of ONNX models that add nodes, at the level that makes all of them: exact in float64, at borders and for sizes known at run time."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import BOUND, error_of, folded, model, node, norm, norm_constants, numbers, ops_of


def ahead(*nodes: onnx.NodeProto, shape: tuple[int | str, ...] = (2, 4, 7, 7), **constants: np.ndarray) -> onnx.ModelProto:
    """Return a sigmoid, a BatchNorm over 4 channels and what reads it."""
    return model([node("Sigmoid", "x", "r"), norm("r", "n"), *nodes], {**norm_constants(4), **constants}, shape=shape)


def unshifted(channels: int = 4) -> dict[str, np.ndarray]:
    """Return the constants of a BatchNorm that only scales, by positive numbers."""
    constants = norm_constants(channels)
    zeros = np.zeros(channels)
    return {**constants, "bn.weight": np.abs(constants["bn.weight"]), "bn.bias": zeros, "bn.running_mean": zeros}


PAD = np.array([0, 0, 1, 2, 0, 0, 2, 1])
FOLDED = {
    "padded convolution": (ahead(node("Conv", "n w", "y", pads=[1, 1, 1, 1]), w=numbers(5, 4, 3, 3)), "Add"),
    "padded at one end": (ahead(node("Conv", "n w b", "y", pads=[0, 1, 2, 0], strides=[2, 1]), w=numbers(5, 4, 3, 3), b=numbers(5)), "Add"),
    "SAME_UPPER": (ahead(node("Conv", "n w", "y", auto_pad="SAME_UPPER", strides=[2, 2]), w=numbers(5, 4, 2, 2)), "Add"),
    "SAME_LOWER": (ahead(node("Conv", "n w", "y", auto_pad="SAME_LOWER"), w=numbers(5, 4, 2, 2)), "Add"),
    "padded with groups and dilation": (ahead(node("Conv", "n w", "y", pads=[2] * 4, dilations=[2, 2], group=2), w=numbers(6, 2, 3, 3)), "Add"),
    "zeros of an operator of its own": (ahead(node("Pad", "n p", "z"), node("Conv", "z w", "y"), w=numbers(5, 4, 3, 3), p=PAD), "Add"),
    "transposed convolution": (ahead(node("ConvTranspose", "n w", "y", strides=[2, 2]), w=numbers(4, 3, 3, 3)), "Add"),
    "transposed convolution that crops": (
        ahead(node("ConvTranspose", "n w", "y", strides=[2, 2], pads=[1, 0, 1, 1], output_padding=[1, 1]), w=numbers(4, 3, 3, 3)),
        "Add",
    ),
    "sizes known at run time": (
        ahead(node("Conv", "n w", "y", pads=[1, 1, 1, 1]), w=numbers(5, 4, 3, 3), shape=("batch", 4, "height", "width")),
        "Concat",
    ),
    "sizes known at run time, with groups": (
        ahead(node("Conv", "n w", "y", pads=[1, 1, 1, 1], group=2), w=numbers(6, 2, 3, 3), shape=("batch", 4, "height", "width")),
        "Concat",
    ),
    "product of two readers": (
        model(
            [node("Conv", "x w b", "c"), norm("c", "n"), node("Sigmoid", "c", "s"), node("Add", "n s", "y")],
            {"w": numbers(4, 4, 3, 3), "b": numbers(4), **norm_constants(4)},
            shape=(2, 4, 7, 7),
        ),
        "Conv",
    ),
    "product that is an output": (
        model([node("Conv", "x w", "c"), norm("c", "y")], {"w": numbers(4, 4, 3, 3), **norm_constants(4)}, shape=(2, 4, 7, 7), outputs=("y", "c")),
        "Conv",
    ),
    "maximum with negative scales": (
        model(
            [node("Conv", "x w", "c"), node("MaxPool", "c", "m", kernel_shape=[2, 2]), norm("m", "n"), node("Conv", "n v", "y", pads=[1, 1, 1, 1])],
            {"w": numbers(4, 4, 3, 3), "v": numbers(3, 4, 3, 3), **norm_constants(4)},
            shape=(2, 4, 7, 7),
        ),
        "MaxPool",
    ),
    "behind a relu, only scaled": (
        model([node("Conv", "x w", "c"), node("Relu", "c", "r"), norm("r", "y")], {"w": numbers(4, 4, 3, 3), **unshifted()}, shape=(2, 4, 7, 7)),
        "Relu",
    ),
    "behind a prelu, only scaled": (
        model(
            [node("Conv", "x w", "c"), node("PRelu", "c a", "r"), norm("r", "y")],
            {"w": numbers(4, 4, 3, 3), "a": numbers(4, 1, 1), **unshifted()},
            shape=(2, 4, 7, 7),
        ),
        "PRelu",
    ),
    "a batch of matrices": (
        model(
            [node("MatMul", "x w", "c"), node("Transpose", "c", "t", perm=[0, 2, 1]), norm("t", "y")],
            {"w": numbers(2, 6, 4), **norm_constants(4)},
            shape=(2, 5, 6),
        ),
        "MatMul",
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_everything_that_is_exact_is_folded(name):
    """No BatchNorm is left, what was added is there, and in float64 the model is the same function."""
    given, added = FOLDED[name]
    fold = folded(given, level="aggressive")
    assert fold.refusals == ()
    assert len(fold.folded) == 1
    assert added in ops_of(fold.model)
    assert "BatchNormalization" not in ops_of(fold.model)
    shape = tuple(dim.dim_value or size for dim, size in zip(given.graph.input[0].type.tensor_type.shape.dim, (3, 4, 6, 9), strict=False))
    assert error_of(given, fold, shape) <= BOUND
    onnx.checker.check_model(fold.model, full_check=True)


def test_by_default_work_has_to_pay():
    """A border that costs more than the BatchNorm is left alone by default, and the refusal says what it would cost."""
    given = FOLDED["product of two readers"][0]
    fold = folded(given)
    assert [refusal.reason.name for refusal in fold.refusals] == ["OTHER_CONSUMER"]
    assert "aggressive" in fold.refusals[0].detail
    assert fold.cost_after == fold.cost_before


def test_the_conservative_level():
    """The conservative level folds into what stands before, and nothing ahead."""
    given = ahead(node("Conv", "n w", "y"), w=numbers(5, 4, 3, 3))
    assert len(folded(given).folded) == 1
    assert folded(given, level="conservative").folded == ()
