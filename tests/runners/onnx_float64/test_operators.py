"""Operators in float64: against ONNX's own evaluator where it is right, and against ONNX Runtime for every opset."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from exporter.runners.onnx_float64.evaluating import Float64Evaluator

ROUNDS = range(12)


def _model(
    op: str, inputs: dict[str, np.ndarray], opset: int, constants: dict[str, np.ndarray], order: list[str], **attributes: Any
) -> onnx.ModelProto:
    node = helper.make_node(op, order, ["y"], name="node", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape) for name, array in inputs.items()],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _ours(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return Float64Evaluator(model).run({name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in inputs.items()})["y"]


def _in_onnxruntime(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    graph.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    return ort.InferenceSession(graph.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, inputs)[0]


def _by_the_evaluator(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return ReferenceEvaluator(model).run(None, inputs)[0]


def _assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert found.dtype == np.float64
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(expected).max(initial=0.0))))


def _random_windows(rng: np.random.Generator, rank: int, *, dilated: bool = True) -> dict[str, Any]:
    attributes: dict[str, Any] = {"strides": rng.integers(1, 4, rank).tolist()}
    if dilated:
        attributes["dilations"] = rng.integers(1, 3, rank).tolist()
    padding = rng.integers(0, 4)
    if padding < 2:
        attributes["pads"] = rng.integers(0, 2, 2 * rank).tolist()
    else:
        attributes["auto_pad"] = ["SAME_UPPER", "SAME_LOWER", "VALID"][rng.integers(3)]
        if dilated and attributes["auto_pad"] != "VALID":
            attributes["dilations"] = [1] * rank  # ONNX Runtime takes no others with SAME, or forgets them
    return attributes


@pytest.mark.parametrize("seed", ROUNDS)
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_a_convolution_of_any_geometry(op: str, seed: int) -> None:
    """Strides, dilations, groups, asymmetric and automatic padding, with and without bias, over one to three axes."""
    rng = np.random.default_rng([seed, len(op)])
    rank, groups = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    kernel = rng.integers(1, 4, rank).tolist()
    attributes = {**_random_windows(rng, rank), "group": groups}
    if op == "ConvTranspose" and "pads" in attributes:
        attributes["output_padding"] = [int(rng.integers(0, stride)) for stride in attributes["strides"]]
    x = rng.standard_normal((2, 2 * groups, *rng.integers(6, 10, rank)))
    shape = (3 * groups, 2) if op == "Conv" else (2 * groups, 3)
    constants = {"w": rng.standard_normal((*shape, *kernel))}
    if seed % 2:
        constants["b"] = rng.standard_normal(3 * groups)
    narrow = {name: array.astype(np.float32) for name, array in {"x": x, **constants}.items()}
    model = _model(op, {"x": narrow["x"]}, 13, {name: narrow[name] for name in constants}, list(narrow), **attributes)
    _assert_close(_ours(model, {"x": narrow["x"]}), _in_onnxruntime(model, {"x": narrow["x"]}), 1e-5)
    if op == "Conv" and "auto_pad" not in attributes:
        wide = _model(op, {"x": x}, 13, constants, list(narrow), **attributes)
        _assert_close(_ours(wide, {"x": x}), _by_the_evaluator(wide, {"x": x}), 1e-12)


@pytest.mark.parametrize("seed", ROUNDS)
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pooling_of_any_geometry(op: str, seed: int) -> None:
    """Padding that counts or not, windows that stand over the border, over one to three axes, as ONNX Runtime computes them."""
    rng = np.random.default_rng([seed, len(op)])
    rank = int(rng.integers(1, 4))
    kernel = rng.integers(2, 4, rank).tolist()
    attributes = {**_random_windows(rng, rank, dilated=op == "MaxPool"), "kernel_shape": kernel}
    if "auto_pad" not in attributes:
        attributes["ceil_mode"] = int(rng.integers(0, 2))
    if op == "AveragePool":
        attributes["count_include_pad"] = int(rng.integers(0, 2)) if "auto_pad" not in attributes else 0
    x = rng.standard_normal((2, 3, *rng.integers(6, 10, rank))).astype(np.float32)
    model = _model(op, {"x": x}, 13 if op == "MaxPool" else 19, {}, ["x"], **attributes)
    _assert_close(_ours(model, {"x": x}), _in_onnxruntime(model, {"x": x}), 1e-5)


def test_max_pooling_with_places_is_left_to_the_evaluator() -> None:
    """Where the places of the maxima are asked for, values are those of ONNX Runtime all the same."""
    x = np.random.default_rng(0).standard_normal((1, 2, 6, 6)).astype(np.float32)
    model = _model("MaxPool", {"x": x}, 13, {}, ["x"], kernel_shape=[2, 2], strides=[2, 2])
    model.graph.node[0].output.append("places")
    _assert_close(_ours(model, {"x": x}), _in_onnxruntime(model, {"x": x}), 1e-6)


@pytest.mark.parametrize("transformation", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("by", ["scales", "sizes"])
def test_resize_in_every_mode(mode: str, transformation: str, by: str) -> None:
    """Enlarged, made smaller and of odd factors: as ONNX Runtime does it, and as the evaluator does in float64."""
    rng = np.random.default_rng(3)
    for sizes in ((8, 8), (7, 11), (3, 2), (4, 9)):
        x = rng.standard_normal((1, 2, 4, 6)).astype(np.float32)
        constants = {"sizes": np.array((1, 2, *sizes), np.int64)}
        if by == "scales":
            constants = {"scales": np.array((1, 1, sizes[0] / 4, sizes[1] / 6), np.float32)}
        attributes = {"mode": mode, "coordinate_transformation_mode": transformation}
        if mode == "nearest":
            attributes["nearest_mode"] = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"][sizes[0] % 4]
        model = _model("Resize", {"x": x}, 19, constants, ["x", "", "scales"] if by == "scales" else ["x", "", "", "sizes"], **attributes)
        _assert_close(_ours(model, {"x": x}), _in_onnxruntime(model, {"x": x}), 1e-5)
        wide = _model("Resize", {"x": x.astype(np.float64)}, 19, constants, list(model.graph.node[0].input), **attributes)
        if mode == "linear":  # the evaluator has float32 coefficients for cubic
            _assert_close(_ours(wide, {"x": x}), _by_the_evaluator(wide, {"x": x.astype(np.float64)}), 1e-6 if by == "scales" else 1e-12)


def test_cubic_resize_without_what_is_outside() -> None:
    """``exclude_outside`` and another coefficient are honoured."""
    x = np.random.default_rng(4).standard_normal((1, 1, 5, 7)).astype(np.float32)
    constants = {"sizes": np.array((1, 1, 9, 4), np.int64)}
    model = _model("Resize", {"x": x}, 19, constants, ["x", "", "", "sizes"], mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1)
    _assert_close(_ours(model, {"x": x}), _in_onnxruntime(model, {"x": x}), 1e-5)


@pytest.mark.parametrize(("op", "opset"), [("Upsample", 9), ("Resize", 10)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resizing_of_old_opsets(op: str, opset: int, mode: str) -> None:
    """Before opset 11 the coordinates are asymmetric and the nearest neighbour is the lower one."""
    x = np.random.default_rng(5).standard_normal((1, 2, 4, 6)).astype(np.float32)
    model = _model(op, {"x": x}, opset, {"s": np.array((1, 1, 2, 1.5), np.float32)}, ["x", "s"], mode=mode)
    _assert_close(_ours(model, {"x": x}), _in_onnxruntime(model, {"x": x}), 1e-5)


@pytest.mark.parametrize("opset", [9, 11, 13, 20])
@pytest.mark.parametrize("axis", [None, 1, 2, -1])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_of_every_opset(op: str, opset: int, axis: int | None) -> None:
    """Before opset 13 the axes from ``axis`` on are one, and without ``axis`` that is 1."""
    x = np.random.default_rng(6).standard_normal((2, 3, 4)).astype(np.float32)
    model = _model(op, {"x": x}, opset, {}, ["x"], **({} if axis is None else {"axis": axis}))
    _assert_close(_ours(model, {"x": x}), _in_onnxruntime(model, {"x": x}), 1e-5)


@pytest.mark.parametrize("opset", [7, 9, 13, 14, 15, 20])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_batch_norm_takes_its_running_statistics_in_every_opset(opset: int, rank: int) -> None:
    """Opset 7 to the newest: ``(x - mean) / sqrt(var + epsilon) * scale + bias``, whatever the momentum."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((3, 4, *(5,) * rank)).astype(np.float32)
    constants = {name: rng.uniform(0.5, 2, 4).astype(np.float32) for name in ("scale", "bias", "mean", "var")}
    model = _model("BatchNormalization", {"x": x}, opset, constants, ["x", *constants], epsilon=1e-3)
    found = _ours(model, {"x": x})
    _assert_close(found, _in_onnxruntime(model, {"x": x}), 1e-5)
    s, b, m, v = (array.astype(np.float64).reshape(-1, *(1,) * rank) for array in constants.values())
    _assert_close(found, (x - m) / np.sqrt(v + np.float64(np.float32(1e-3))) * s + b, 1e-13)


def test_batch_norm_in_training_mode_takes_the_statistics_of_the_batch() -> None:
    """From opset 14 on, with ``training_mode``: as weights are standardised with a BatchNorm over the weight."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((2, 4, 5)).astype(np.float32)
    constants = {name: rng.uniform(0.5, 2, 4).astype(np.float32) for name in ("scale", "bias", "mean", "var")}
    model = _model("BatchNormalization", {"x": x}, 15, constants, ["x", *constants], training_mode=1, momentum=0.5)
    model.graph.node[0].output.extend(["mean_after", "var_after"])
    _assert_close(_ours(model, {"x": x}), _in_onnxruntime(model, {"x": x}), 1e-5)


@pytest.mark.parametrize(
    ("op", "function"), [pytest.param("Erf", math.erf, id="Erf"), pytest.param("Sigmoid", lambda x: 1 / (1 + math.exp(-x)), id="Sigmoid")]
)
def test_functions_of_each_number(op: str, function: Callable[[float], float]) -> None:
    """To the last digits, also far out; the evaluator's own ``Erf`` has those of float32."""
    x = np.concatenate([np.linspace(-40, 40, 161), [1e-300, -700.0, 700.0]])
    model = _model(op, {"x": x}, 13, {}, ["x"])
    np.testing.assert_allclose(_ours(model, {"x": x}), [function(value) for value in x], rtol=1e-14, atol=0)


@pytest.mark.parametrize("op", ["Erf", "Sigmoid"])
def test_a_single_number_stays_one(op: str) -> None:
    """Without axes in, without axes out."""
    x = np.array(0.25)
    assert _ours(_model(op, {"x": x}, 13, {}, ["x"]), {"x": x}).shape == ()
