"""A model in 8 bits has symmetric pairs at the inputs of its products, keeps float32 elsewhere, and is what ONNX Runtime's quantiser makes of it."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import onnxruntime
import pytest

from exporter.errors import ConfigError
from exporter.onnx_export.precision import check_patterns, precision_shares, shares_text
from exporter.onnx_export.quantising import eight_bit_precision, find_products, quantise_

NETWORK = """
<ir_version: 10, opset_import: ["": 20]>
net (float[N,4,6,6] x) => (float[N,5] y, float[N,4,6,6] features)
<float[4,4,3,3] w, float[4] b, float[4,1,3,3] g, float[4,4,2,2] u, float[4,2,2,2] grouped, float[36,8] m, float[5,32] v, float[4,4,1,1] zero,
 int64[3] s = {0, 4, 36}, int64[2] flat = {0, 32}>
{
    features = Conv<pads = [1, 1, 1, 1]>(x, w, b)
    other = Conv<pads = [1, 1, 1, 1], group = 4>(features, g)
    silent = Conv(features, zero)
    up = ConvTranspose<strides = [2, 2]>(features, u)
    groups = ConvTranspose<strides = [2, 2], group = 2>(features, grouped)
    sum = Add(up, groups)
    pooled = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(sum)
    both = Add(other, pooled)
    more = Add(both, silent)
    r = Reshape(more, s)
    t = MatMul(r, m)
    e = Transpose<perm = [0, 2, 1]>(t)
    a = MatMul(e, t)
    p = ReduceMean<keepdims = 1>(a)
    q = Add(t, p)
    f = Reshape(q, flat)
    y = Gemm<transB = 1>(f, v)
}
"""
RANGES = {"x": 3.2, "features": 18.3, "r": 97.7, "f": 5690.0}
"""Largest magnitudes on the input of the tests."""


def network(seed: int = 0) -> onnx_ir.Model:
    """Return the network with random weights and the dtypes of all values; one channel of a weight is zero, and one weight altogether."""
    rng = np.random.default_rng(seed)
    model = onnx.parser.parse_model(NETWORK)
    kept = [tensor for tensor in model.graph.initializer if tensor.name in {"s", "flat"}]
    shapes = {"w": (4, 4, 3, 3), "b": (4,), "g": (4, 1, 3, 3), "u": (4, 4, 2, 2), "grouped": (4, 2, 2, 2), "m": (36, 8), "v": (5, 32)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["w"][2] = 0.0
    arrays["zero"] = np.zeros((4, 4, 1, 1), np.float32)
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())])
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    lower = onnx_ir.from_proto(model)
    lower.graph[0].metadata_props["exporter.module"] = "stem.conv"
    return lower


def quantised(precision: str = "int8", patterns: tuple[str, ...] = ()) -> tuple[onnx_ir.Model, dict[str, str]]:
    """Return the network in 8 bits and the reasons of what stays."""
    model = network()
    products, islands = find_products(model, patterns)
    quantise_(model, precision, products, RANGES)
    return model, {node.name: reason for node, reason in islands.items()}


def checked(model: onnx_ir.Model) -> onnx.ModelProto:
    """Return the model, which has passed ONNX's full checker and strict shape inference."""
    proto = onnx_ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    return proto


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_every_zero_point_is_zero(precision):
    """Symmetric throughout, in signed 8 bits, as TensorRT wants it; every scale is positive, that of a channel of zeros too."""
    proto = checked(quantised(precision)[0])
    numbers = constants(proto)
    pairs = [node for node in proto.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert len(pairs) == 2 * (4 + 5)  # values and weights
    dtype = {"int8": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN}[precision]
    zeros = {node.input[2] for node in pairs}
    assert {tensor.data_type for tensor in proto.graph.initializer if tensor.name in zeros} == {dtype}
    assert not any(numbers[name].astype(np.float32).any() for name in zeros)
    assert all((numbers[node.input[1]] > 0).all() and numbers[node.input[1]].dtype == np.float32 for node in pairs)


def test_weights_have_a_scale_for_each_output_channel():
    """Along the axis of the operator: first of a convolution and of a transposed Gemm, second of a transposed convolution and of MatMul."""
    proto = checked(quantised()[0])
    numbers = constants(proto)
    found = {}
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in numbers:
            axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
            found[node.input[0]] = axis
            weight = np.abs(numbers[node.input[0]]).max(tuple(other for other in range(numbers[node.input[0]].ndim) if other != axis))
            scale = numbers[node.input[1]]
            np.testing.assert_allclose(scale[weight > 0], weight[weight > 0] / 127, rtol=1e-6)
    assert found == {"w": 0, "g": 0, "u": 1, "m": 1, "v": 0}


def test_fp8_has_one_scale_for_a_weight():
    """The exponent of each number follows its channel; the largest number becomes 448."""
    proto = checked(quantised("fp8")[0])
    numbers = constants(proto)
    assert all(numbers[name].shape == () for name in numbers if name.endswith("/scale"))
    np.testing.assert_allclose(numbers["w/fp8/scale"], np.abs(numbers["w"]).max() / 448, rtol=1e-6)


def test_a_value_has_one_pair_for_all_its_readers_and_the_others_read_it_as_it_is():
    """Three products read ``features`` through one pair, the output of the model and the islands read the value itself; biases have no pair."""
    proto = checked(quantised()[0])
    readers = {node.name: list(node.input) for node in proto.graph.node}
    assert readers["Conv_1"][0] == readers["ConvTranspose_3"][0] == "features/int8/float32"
    assert readers["ConvTranspose_4"][0] == readers["Conv_2"][0] == "features"
    assert readers["Conv_0"][2] == "b"
    assert [(value.name, value.type.tensor_type.elem_type) for value in (*proto.graph.input, *proto.graph.output)] == [
        ("x", 1),
        ("y", 1),
        ("features", 1),
    ]


def test_what_stays_says_why():
    """Weights that are computed or zero, transposed convolutions in groups; the shares count what reads pairs."""
    model, reasons = quantised()
    assert reasons == {"Conv_2": "zero weight", "ConvTranspose_4": "grouped", "MatMul_12": "computed weight"}
    assert shares_text(precision_shares(model)) == "float32 71 %, int8 29 %"


@pytest.mark.parametrize(("pattern", "node"), [("stem.*", "Conv_0"), ("Gemm_*", "Gemm_16")])
def test_what_the_user_names_stays_float32(pattern, node):
    """A pattern matches the name of a module or of a node, and the node reads its own weight."""
    model, reasons = quantised(patterns=(pattern,))
    assert reasons[node] == "asked for"
    proto = checked(model)
    assert next(made for made in proto.graph.node if made.name == node).input[1] in {"w", "v"}


def test_a_pattern_that_matches_nothing_is_an_error():
    """The near misses are named."""
    with pytest.raises(ConfigError, match=r"stem\.con") as caught:
        check_patterns(network(), ["stem.con"])
    assert (caught.value.code, caught.value.help) == ("E456", "did you mean stem.conv?")


class Reader:
    """Samples in batches, as ONNX Runtime's quantiser takes them."""

    def __init__(self, x: np.ndarray) -> None:
        self._batches = iter([{"x": rows[None]} for rows in x])

    def get_next(self):
        return next(self._batches, None)


def quantised_by_onnxruntime(path, x: np.ndarray, nodes: list[str]) -> onnx.ModelProto:
    """Return the network in int8 as ``quantize_static`` makes it: symmetric, by channel, with the ranges of the largest values."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    proto = onnx_ir.to_proto(network())
    proto.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")  # nothing to advise
    path.write_bytes(proto.SerializeToString())
    made = path.with_suffix(".int8.onnx")
    kinds = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
    options = {
        "ActivationSymmetric": True, "WeightSymmetric": True, "AddQDQPairToWeight": True, "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": kinds, "DedicatedQDQPair": True, "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1, "ConvTranspose": 1},
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        quantize_static(
            str(path), str(made), Reader(x), quant_format=QuantFormat.QDQ, op_types_to_quantize=kinds, nodes_to_quantize=nodes, per_channel=True,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax, extra_options=options,
        )  # fmt: skip
    return onnx.load(made)


def test_it_is_what_the_quantiser_of_onnx_runtime_makes(tmp_path):
    """With the same ranges the scales are the same, and so are the outputs but for the order of sums; and its file is known for what it is."""
    x = np.random.default_rng(1).standard_normal((3, 4, 6, 6)).astype(np.float32)
    model = network()
    products, _ = find_products(model, ())
    theirs = quantised_by_onnxruntime(tmp_path / "net.onnx", x, [product.node.name for product in products])
    scales = constants(theirs)
    quantise_(model, "int8", products, {name: float(scales[f"{name}_scale"]) * 127.0 for name in RANGES})
    ours = checked(model)
    for name in ("g", "u", "m", "v"):
        axis = {"u": 1, "m": 1}.get(name, 0)
        np.testing.assert_allclose(constants(ours)[f"{name}/int8/{axis}/scale"], scales[f"{name}_scale"].ravel(), rtol=2e-6)
    for want, got in zip(run(theirs, x), run(ours, x), strict=True):
        assert np.linalg.norm(got - want) <= 1e-6 * np.linalg.norm(want)
    assert eight_bit_precision(theirs) == "int8"


def test_the_numbers_are_those_of_8_bits():
    """The outputs agree with float32 to the digits of 8 bits, and are not float32's own."""
    x = np.random.default_rng(1).standard_normal((3, 4, 6, 6)).astype(np.float32)
    wide = run(checked(network()), x)
    for precision, digits in (("int8", 5e-2), ("fp8", 2e-1)):
        for want, got in zip(wide, run(checked(quantised(precision)[0]), x), strict=True):
            assert 1e-4 < np.linalg.norm(got - want) / np.linalg.norm(want) < digits


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("<float s = {0.5}, int8 z = {0}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }", "int8"),
        ("<float s = {0.5}> { z = Constant<value = int8 {0}>() q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }", "int8"),
        ("<float s = {0.5}> { q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }", "int8"),
        ("<float s = {0.5}> { q = QuantizeLinear<output_dtype = 17>(x, s) y = DequantizeLinear(q, s) }", "fp8"),
        ("<float s = {0.5}, int8[3] w = {1, 2, 3}> { d = DequantizeLinear(w, s) y = Mul(x, d) }", "int8"),
        ("<float s = {0.5}, int32[3] w = {1, 2, 3}> { d = DequantizeLinear(w, s) y = Mul(x, d) }", ""),
        ("{ y = Relu(x) }", ""),
    ],
    ids=["zero point", "computed zero point", "none", "output dtype", "weights alone", "whole numbers", "no pairs"],
)
def test_a_file_of_others_is_known_by_its_pairs(text, precision):
    """By the zero point, the declared dtype, or the weights that are stored in it."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> g (float[3] x) => (float[3] y) {text}')
    assert eight_bit_precision(model) == precision
