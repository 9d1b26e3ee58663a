"""BatchNorms of ONNX models are folded exactly, through what the map passes, back and ahead; the models compute in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from small_models import BOUND, IMAGE, constant_of, error_of, folded, model, node, norm, norm_constants, numbers, ops_of, run

from exporter.graph.algebra import affine_from_batch_norm, rounded_once, scaled_outputs, shifted_bias

CONV = {"w": numbers(4, 3, 3, 3), "b": numbers(4, seed=1)}


def axes(*given_: int) -> np.ndarray:
    return np.array(given_, dtype=np.int64)


def behind(*between: onnx.NodeProto, channels: int = 4, outputs: int = 4, **constants: np.ndarray):
    """Return a convolution, what stands between, and a BatchNorm over ``channels``."""
    weights = {"w": numbers(outputs, 3, 3, 3), "b": numbers(outputs, seed=1), **norm_constants(channels), **constants}
    return model([node("Conv", "x w b", "c"), *between, norm(between[-1].output[0] if between else "c", "y")], weights)


def ahead(product: onnx.NodeProto, *between: onnx.NodeProto, channels: int = 3, **constants: np.ndarray):
    """Return a ReLU, a BatchNorm over ``channels``, what stands between, and a product."""
    return model([node("Relu", "x", "r"), norm("r", "n"), *between, product], {**norm_constants(channels), **constants})


FOLDED = {
    "conv": behind(),
    "identity": behind(node("Identity", "c", "z")),
    "dropout": behind(node("Dropout", "c", "z")),
    "dropout with training_mode false": behind(node("Dropout", "c ratio off", "z"), ratio=np.array(0.5), off=np.array(False)),
    "cast to the same dtype": behind(node("Cast", "c", "z", to=TensorProto.DOUBLE)),
    "average pool": behind(node("AveragePool", "c", "z", kernel_shape=[2, 2], strides=[2, 2])),
    "padded average pool that counts no padding": behind(node("AveragePool", "c", "z", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=0)),
    "overhanging average pool": behind(node("AveragePool", "c", "z", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)),
    "global average pool": behind(node("GlobalAveragePool", "c", "z")),
    "mean over space, axes as input": behind(node("ReduceMean", "c a", "z", keepdims=0), a=axes(2, 3)),
    "nearest upsampling": behind(node("Resize", "c - s", "z", mode="nearest"), s=np.array([1.0, 1.0, 2.0, 2.0], np.float32)),
    "linear upsampling by size": behind(node("Resize", "c - - s", "z", mode="linear"), s=axes(2, 4, 9, 11)),
    "cubic upsampling": behind(node("Resize", "c - s", "z", mode="cubic"), s=np.array([1.0, 1.0, 1.5, 2.0], np.float32)),
    "reflecting padding": behind(node("Pad", "c p", "z", mode="reflect"), p=axes(0, 0, 1, 1, 0, 0, 1, 1)),
    "repeating padding": behind(node("Pad", "c p", "z", mode="edge"), p=axes(0, 0, 1, 2, 0, 0, 0, 1)),
    "transpose": behind(node("Transpose", "c", "t", perm=[0, 2, 3, 1]), node("Reshape", "t shape", "z"), shape=axes(-1, 4)),
    "reshape that keeps the channels": behind(node("Reshape", "c shape", "z"), shape=axes(2, 4, -1)),
    "reshape that zero copies": behind(node("Reshape", "c shape", "z"), shape=axes(0, 0, -1)),
    "flatten, squeeze and unsqueeze": behind(
        node("GlobalAveragePool", "c", "g"),
        node("Squeeze", "g a", "s"),
        node("Unsqueeze", "s u", "t"),
        node("Flatten", "t", "z"),
        a=axes(2, 3),
        u=axes(2),
    ),
    "depth to space, rows of a channel first": behind(node("DepthToSpace", "c", "z", blocksize=2, mode="CRD"), channels=4, outputs=16),
    "depth to space, depth first": behind(node("DepthToSpace", "c", "z", blocksize=2), channels=4, outputs=16),
    "slice": behind(node("Slice", "c from to axis", "z"), **{"from": axes(2)}, to=axes(6), axis=axes(1), channels=4, outputs=8),
    "slice of the image": behind(node("Slice", "c from to axis", "z"), **{"from": axes(1, 0)}, to=axes(6, 5), axis=axes(2, 3)),
    "gathering of neighbours": behind(node("Gather", "c at", "z", axis=1), at=axes(1, 2, 3, 4), outputs=8),
    "several sums": model(
        [
            node("Conv", "x w b", "c"),
            node("Conv", "x w2", "d"),
            node("Conv", "x w3", "e"),
            node("Sum", "c d e", "z"),
            norm("z", "y"),
        ],
        {**CONV, "w2": numbers(4, 3, 3, 3, seed=3), "w3": numbers(4, 3, 3, 3, seed=4), **norm_constants(4)},
    ),
    "difference": model(
        [node("Conv", "x w b", "c"), node("Conv", "x w2", "d"), node("Sub", "c d", "z"), norm("z", "y")],
        {**CONV, "w2": numbers(4, 3, 3, 3, seed=3), **norm_constants(4)},
    ),
    "concatenation": model(
        [node("Conv", "x w b", "c"), node("Conv", "x w2", "d"), node("Concat", "c d", "z", axis=1), norm("z", "y")],
        {**CONV, "w2": numbers(2, 3, 3, 3, seed=3), **norm_constants(6)},
    ),
    "one part of a split": model(
        [
            node("Conv", "x w", "c"),
            node("Split", "c parts", "p q", axis=1),
            norm("p", "n"),
            node("Relu", "q", "r"),
            node("Concat", "n r", "y", axis=1),
        ],
        {"w": numbers(7, 3, 3, 3), "parts": axes(4, 3), **norm_constants(4)},
    ),
    "part of a split into a sequence": model(
        [
            node("Conv", "x w", "c"),
            node("SplitToSequence", "c parts", "p", axis=1),
            node("SequenceAt", "p one", "q"),
            norm("q", "y"),
        ],
        {"w": numbers(7, 3, 3, 3), "parts": axes(4, 3), "one": np.array(1), **norm_constants(3)},
    ),
    "two BatchNorms": model(
        [node("Conv", "x w b", "c"), norm("c", "n"), norm("n", "y", "bn2")], {**CONV, **norm_constants(4), **norm_constants(4, "bn2", 5)}
    ),
    "weight of two calls": model(
        [node("Conv", "x w", "c"), norm("c", "n"), node("Relu", "n", "r"), node("Conv", "r w", "d"), norm("d", "y", "bn2")],
        {"w": numbers(3, 3, 3, 3), **norm_constants(3), **norm_constants(3, "bn2", 5)},
    ),
    "gemm": model([node("Gemm", "x w b", "c"), norm("c", "y")], {"w": numbers(6, 5), "b": numbers(5), **norm_constants(5)}, shape=(2, 6)),
    "transposed gemm without bias": model(
        [node("Gemm", "x w", "c", transA=1, transB=1), norm("c", "y")], {"w": numbers(5, 6), **norm_constants(5)}, shape=(6, 3)
    ),
    "matmul": model(
        [node("MatMul", "x w", "c"), node("Transpose", "c", "t", perm=[0, 2, 1]), norm("t", "y")],
        {"w": numbers(6, 4), **norm_constants(4)},
        shape=(2, 5, 6),
    ),
    "matmul and the sum of its bias": model(
        [node("MatMul", "x w", "c"), node("Add", "b c", "d"), node("Transpose", "d", "t", perm=[0, 2, 1]), norm("t", "y")],
        {"w": numbers(6, 4), "b": numbers(4), **norm_constants(4)},
        shape=(2, 5, 6),
    ),
    "matmul with the constant on the left": model(
        [node("MatMul", "w x", "c"), norm("c", "y")], {"w": numbers(4, 5), **norm_constants(4)}, shape=(2, 5, 6)
    ),
    "conv and the sum of its bias": model(
        [node("Conv", "x w", "c"), node("Add", "c b", "d"), norm("d", "y")], {"w": CONV["w"], "b": numbers(1, 4, 1, 1), **norm_constants(4)}
    ),
    "conv and the sum of one number": model(
        [node("Conv", "x w", "c"), node("Add", "c b", "d"), norm("d", "y")], {"w": CONV["w"], "b": np.array(0.5), **norm_constants(4)}
    ),
    "transposed weight": model(
        [node("Transpose", "w", "v"), node("MatMul", "x v", "c"), norm("c", "y")], {"w": numbers(4, 6), **norm_constants(4)}, shape=(2, 6)
    ),
    "weight and statistics in Constant nodes": model(
        [
            node("Constant", "", "w", value=onnx.numpy_helper.from_array(numbers(4, 3, 3, 3))),
            node("Constant", "", "bn.running_mean", value=onnx.numpy_helper.from_array(numbers(4))),
            node("Conv", "x w", "c"),
            norm("c", "y"),
        ],
        {name: array for name, array in norm_constants(4).items() if "mean" not in name},
    ),
    "before a convolution": ahead(node("Conv", "n w", "y"), w=numbers(4, 3, 3, 3)),
    "before a convolution with its own SAME, one tap": ahead(node("Conv", "n w", "y", auto_pad="SAME_UPPER"), w=numbers(4, 3, 1, 1)),
    "before a convolution that is VALID": ahead(node("Conv", "n w", "y", auto_pad="VALID"), w=numbers(4, 3, 2, 2)),
    "before a flattened gemm": ahead(node("Gemm", "f w b", "y"), node("Flatten", "n", "f"), w=numbers(192, 5), b=numbers(5)),
    "before a pooled gemm": ahead(
        node("Gemm", "f w", "y", transB=1), node("GlobalAveragePool", "n", "g"), node("Flatten", "g", "f"), w=numbers(5, 3)
    ),
    "before a matmul": model(
        [node("Relu", "x", "r"), norm("r", "n"), node("Transpose", "n", "t", perm=[0, 2, 1]), node("MatMul", "t w", "y")],
        {"w": numbers(3, 5), **norm_constants(3)},
        shape=(2, 3, 7),
    ),
    "beside a convolution": model(
        [node("Relu", "x", "r"), node("Conv", "r w", "c", pads=[1, 1, 1, 1]), norm("r", "n"), node("Add", "c n", "y")],
        {"w": numbers(3, 3, 3, 3), **norm_constants(3)},
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_every_batch_norm_goes_and_the_function_stays(name):
    """No BatchNormalization is left, every one is in the list of the folded, and in float64 the model is the same function."""
    given_model = FOLDED[name]
    before = ops_of(given_model).count("BatchNormalization")
    content = given_model.SerializeToString(deterministic=True)
    fold = folded(given_model)
    assert fold.refusals == ()
    assert len(fold.folded) == fold.num_batch_norms == before
    assert "BatchNormalization" not in ops_of(fold.model)
    shape = tuple(dim.dim_value for dim in given_model.graph.input[0].type.tensor_type.shape.dim)
    assert error_of(given_model, fold, shape) <= (1e-6 if name == "cubic upsampling" else BOUND)  # the evaluator's cubic weights are float32
    onnx.checker.check_model(fold.model, full_check=True)
    assert given_model.SerializeToString(deterministic=True) == content


@settings(max_examples=40)
@given(
    spatial=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    multiple=st.integers(1, 2),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.sampled_from(["none", "both", "end", "SAME_UPPER", "SAME_LOWER", "VALID"]),
    bias=st.booleans(),
    opset=st.sampled_from([9, 11, 13, 15, 21]),
    tiny=st.booleans(),
    seed=st.integers(0, 99),
)
def test_convolution_of_any_shape(spatial, groups, multiple, kernel, stride, dilation, padding, bias, opset, tiny, seed):
    """A BatchNorm behind any convolution is folded, and the model stays the same function."""
    outputs = 4 * multiple
    attributes: dict[str, object] = {"strides": [stride] * spatial, "dilations": [dilation] * spatial, "group": groups}
    if padding in {"both", "end"}:
        attributes["pads"] = [int(padding == "both")] * spatial + [1] * spatial
    elif padding != "none":
        attributes["auto_pad"] = padding
        attributes["dilations"] = [1] * spatial  # the evaluator takes no other with it
    constants = {"w": numbers(outputs, 4 // groups, *[kernel] * spatial, seed=seed), **norm_constants(outputs, seed=seed)}
    if tiny:
        constants["bn.running_var"] = constants["bn.running_var"] * 1e-12
    if bias:
        constants["b"] = numbers(outputs, seed=seed + 1)
    shape = (2, 4, *[7] * spatial)
    given_model = model([node("Conv", "x w b" if bias else "x w", "c", **attributes), norm("c", "y")], constants, shape=shape, opset=opset)
    fold = folded(given_model)
    assert [(each.batch_norm, each.pattern) for each in fold.folded] == [("bn", "Conv+bn")]
    assert error_of(given_model, fold, shape) <= BOUND


@settings(max_examples=15)
@given(spatial=st.integers(1, 2), kernel=st.integers(1, 3), stride=st.integers(1, 2), bias=st.booleans(), seed=st.integers(0, 99))
def test_behind_any_transposed_convolution(spatial, kernel, stride, bias, seed):
    """A BatchNorm behind a transposed convolution is folded along the outputs, also where cells hold the bias alone."""
    constants = {"w": numbers(3, 5, *[kernel] * spatial, seed=seed), "b": numbers(5, seed=seed), **norm_constants(5, seed=seed)}
    product = node("ConvTranspose", "x w b" if bias else "x w", "c", strides=[stride] * spatial, output_padding=[stride - 1] * spatial)
    shape = (2, 3, *[4] * spatial)
    given_model = model([product, norm("c", "y")], constants if bias else {k: v for k, v in constants.items() if k != "b"}, shape=shape)
    fold = folded(given_model)
    assert len(fold.folded) == 1
    assert error_of(given_model, fold, shape) <= BOUND


def test_groups_of_a_transposed_convolution():
    """The weight of a transposed convolution in groups is scaled by group; ONNX's evaluator has no groups, so by the formula."""
    constants = {"w": numbers(4, 3, 2, 2), "b": numbers(6), **norm_constants(6)}
    given_model = model([node("ConvTranspose", "x w b", "c", group=2), norm("c", "y")], constants, shape=(2, 4, 5, 5))
    fold = folded(given_model)
    arrays = [constants[f"bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]
    s, t = affine_from_batch_norm(*arrays, float(np.float32(1e-5)))
    assert np.array_equal(constant_of(fold.model, "w")[:2], constants["w"][:2] * s[None, :3, None, None])
    assert np.array_equal(constant_of(fold.model, "w")[2:], constants["w"][2:] * s[None, 3:, None, None])
    assert np.array_equal(constant_of(fold.model, "b"), s * constants["b"] + t)


@pytest.mark.parametrize(("dtype", "name"), [(TensorProto.FLOAT, "float32"), (TensorProto.FLOAT16, "float16"), (TensorProto.BFLOAT16, "bfloat16")])
def test_folded_weights_are_the_correctly_rounded_float64_fold(dtype, name):
    """Weight and bias equal, bit for bit, the float64 fold rounded once to the dtype of the model."""
    given_model = model([node("Conv", "x w b", "c"), norm("c", "y")], {**CONV, **norm_constants(4)}, dtype=dtype)
    fold = folded(given_model)
    arrays = [constant_of(given_model, f"bn.{part}").astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")]
    s, t = affine_from_batch_norm(*arrays, float(np.float32(1e-5)))
    weight, bias = (constant_of(given_model, part).astype(np.float64) for part in ("w", "b"))
    assert constant_of(fold.model, "w").dtype == rounded_once(weight, name).dtype
    assert np.array_equal(constant_of(fold.model, "w"), rounded_once(scaled_outputs(weight, s), name))
    assert np.array_equal(constant_of(fold.model, "b"), rounded_once(shifted_bias(bias, s, t), name))


def test_statistics_in_a_wider_dtype_than_the_data():
    """A half precision model whose BatchNorm keeps float32 statistics (opset 15) is folded into half precision weights."""
    given_model = model([node("Conv", "x w b", "c"), norm("c", "y")], {**CONV, **norm_constants(4)}, dtype=TensorProto.FLOAT16)
    for tensor in given_model.graph.initializer:
        if tensor.name.startswith("bn."):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    fold = folded(given_model)
    assert len(fold.folded) == 1
    assert constant_of(fold.model, "w").dtype == np.float16
    onnx.checker.check_model(fold.model, full_check=True)


def test_the_output_keeps_its_name_and_the_file_its_other_contents():
    """A folded BatchNorm that made an output hands its name to the convolution; metadata, opset and documentation stay."""
    given_model = model([node("Conv", "x w b", "c"), norm("c", "y")], {**CONV, **norm_constants(4)}, producer_name="somebody", doc_string="what")
    given_model.metadata_props.add(key="author", value="me")
    given_model.graph.doc_string = "a graph"
    given_model.graph.node[0].doc_string = "a convolution"
    fold = folded(given_model).model
    assert [value.name for value in fold.graph.output] == ["y"]
    assert (fold.producer_name, fold.doc_string, fold.graph.doc_string) == ("somebody", "what", "a graph")
    assert [(entry.key, entry.value) for entry in fold.metadata_props] == [("author", "me")]
    assert (fold.ir_version, fold.opset_import[0].version) == (10, 20)
    assert (fold.graph.node[0].name, fold.graph.node[0].doc_string) == ("node_c", "a convolution")
    assert {tensor.name for tensor in fold.graph.initializer} == {"w", "b"}


def test_weight_that_something_else_reads_is_copied():
    """The reader beside the convolution keeps the weight as it was; the convolution gets one of its own."""
    given_model = model(
        [node("Conv", "x w b", "c"), norm("c", "n"), node("Conv", "x w", "d"), node("Relu", "d", "r"), node("Add", "n r", "y")],
        {**CONV, **norm_constants(4)},
    )
    fold = folded(given_model)
    assert np.array_equal(constant_of(fold.model, "w"), CONV["w"])
    assert {tensor.name for tensor in fold.model.graph.initializer} == {"w", "w_folded", "b"}
    assert error_of(given_model, fold, IMAGE) <= BOUND


def test_without_batch_norms_nothing_changes():
    """A model without anything to fold comes back as it is, but for what the library that writes it orders differently."""
    given_model = model([node("Conv", "x w b", "c"), node("Relu", "c", "y")], CONV)
    fold = folded(given_model)
    assert (fold.folded, fold.refusals, fold.num_batch_norms) == ((), (), 0)
    assert ops_of(fold.model) == ops_of(given_model)
    assert np.array_equal(constant_of(fold.model, "w"), CONV["w"])


def test_batch_norm_that_stays_takes_new_numbers():
    """Weight and bias of a BatchNorm are its gamma and beta, also where the plan lets it stay."""
    from exporter.graph.onnx.opening import closed, opened
    from exporter.graph.onnx.reading import read_model
    from exporter.graph.onnx.shapes import types_of
    from exporter.graph.onnx.surgery import folded_model
    from exporter.graph.planning import NewNumbers, Plan

    given = model([norm("x", "y")], norm_constants(3))
    working = opened(given, Path())
    reading = read_model(working, types_of(working))
    gamma, beta = numbers(3, seed=4), numbers(3, seed=5)
    folded_model(reading, Plan((NewNumbers("y", gamma, beta),), (), (), ()))
    expected = model([norm("x", "y")], {**norm_constants(3), "bn.weight": gamma, "bn.bias": beta})
    x = numbers(*IMAGE, seed=7)
    np.testing.assert_allclose(run(closed(working), x)[0], run(expected, x)[0], rtol=1e-12)


def test_batch_norm_directly_behind_one_that_stays():
    """It goes into gamma and beta of the first, which has nowhere to go, and the model is the same function."""
    nodes = [node("Sigmoid", "x", "s"), norm("s", "n", name="first"), norm("n", "b"), node("Sigmoid", "b", "y")]
    given_model = model(nodes, {**norm_constants(3, name="first", seed=2), **norm_constants(3)})
    fold = folded(given_model)
    assert [(done.pattern, done.direction) for done in fold.folded] == [("batch_norm+bn", "back")]
    assert len(fold.refusals) == 1
    assert ops_of(fold.model).count("BatchNormalization") == 1
    assert error_of(given_model, fold, IMAGE) <= BOUND


def test_a_computed_constant_that_is_a_single_number_keeps_its_rank():
    """Arithmetic on sizes, as exporters write it for padding like TensorFlow's, divides by single numbers; the file stays valid."""
    nodes = [
        node("Conv", "x w", "c"),
        norm("c", "n"),
        node("Shape", "n", "sizes"),
        node("Gather", "sizes second", "size", axis=0),
        node("Cast", "size", "size_float", to=TensorProto.DOUBLE),
        node("Cast", "two", "two_float", to=TensorProto.DOUBLE),
        node("Div", "size_float two_float", "half"),
        node("Unsqueeze", "half first", "half_row"),
        node("Mul", "n half_row", "y"),
    ]
    constants = {"w": numbers(4, 3, 3, 3), **norm_constants(4), "second": np.array(2), "two": np.array(2), "first": np.array([0])}
    given = model(nodes, constants, shape=("batch", 3, "height", "width"))
    done = folded(given)
    assert len(done.folded) == 1
    divisor = next(made.input[1] for made in done.model.graph.node if made.op_type == "Div")
    assert constant_of(done.model, divisor).shape == ()
    assert error_of(given, done) <= BOUND
