"""What ONNX models hold that cannot be folded exactly is refused with its reason and the culprit, and the model stays the same function."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_models import BOUND, IMAGE, error_of, folded, model, node, norm, norm_constants, numbers, ops_of

from exporter.artifacts import RefusalReason
from exporter.errors import ArtifactError, FoldError

REASON = RefusalReason
CONV = {"w": numbers(4, 3, 3, 3), "b": numbers(4, seed=1), **norm_constants(4)}
HEAD = node("Conv", "x w b", "c")


def axes(*given: int) -> np.ndarray:
    return np.array(given, dtype=np.int64)


def behind(*between: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    """Return a convolution, what stands between, and a BatchNorm."""
    return model([HEAD, *between, norm(between[-1].output[0], "y")], {**CONV, **constants})


CASES = {
    "behind a relu": (behind(node("Relu", "c", "z")), REASON.NOT_LINEAR, "Relu"),
    "second reader": (model([HEAD, norm("c", "n"), node("Relu", "c", "r"), node("Add", "n r", "y")], CONV), REASON.OTHER_CONSUMER, "Relu"),
    "the convolution is an output": (model([HEAD, norm("c", "y")], CONV, outputs=("y", "c")), REASON.GRAPH_OUTPUT, "Conv"),
    "matmul on (N, L, C), L == C": (
        model(
            [node("MatMul", "x w", "c"), node("Add", "c b", "d"), norm("d", "y")],
            {"w": numbers(6, 4), "b": numbers(4), **norm_constants(4)},
            shape=(2, 4, 6),
        ),
        REASON.WRONG_AXIS,
        "MatMul",
    ),
    "gemm that scales": (
        model([node("Gemm", "x w", "c", alpha=2.0), norm("c", "y")], {"w": numbers(6, 4), **norm_constants(4)}, shape=(2, 6)),
        REASON.NOT_LINEAR,
        "Gemm",
    ),
    "gemm that adds a matrix": (
        model([node("Gemm", "x w b", "c"), norm("c", "y")], {"w": numbers(6, 4), "b": numbers(2, 4), **norm_constants(4)}, shape=(2, 6)),
        REASON.NOT_LINEAR,
        "Gemm",
    ),
    "max pool and a negative scale": (behind(node("MaxPool", "c", "z", kernel_shape=[2, 2])), REASON.BLOCKED, "MaxPool"),
    "padded average pool that counts padding": (
        behind(node("AveragePool", "c", "z", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)),
        REASON.BLOCKED,
        "AveragePool",
    ),
    "overhanging average pool that counts padding": (
        behind(node("AveragePool", "c", "z", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, count_include_pad=1)),
        REASON.BLOCKED,
        "AveragePool",
    ),
    "zero padding": (behind(node("Pad", "c p", "z"), p=axes(0, 0, 1, 1, 0, 0, 1, 1)), REASON.BLOCKED, "Pad"),
    "padding with another number": (behind(node("Pad", "c p v", "z"), p=axes(0, 0, 1, 1, 0, 0, 1, 1), v=np.array(2.0)), REASON.NOT_LINEAR, "Pad"),
    "a mean over the channels": (
        model([HEAD, node("ReduceMean", "c a", "m"), node("Expand", "m s", "z"), norm("z", "y")], {**CONV, "a": axes(1), "s": axes(2, 4, 6, 6)}),
        REASON.NOT_LINEAR,
        "Expand",
    ),
    "a reshape that mixes channels": (
        behind(node("Transpose", "c", "t", perm=[0, 2, 3, 1]), node("Reshape", "t s", "z"), s=axes(2, 4, 6, 6)),
        REASON.BLOCKED,
        "Reshape",
    ),
    "weight that is computed from the input": (
        model(
            [node("ReduceMean", "x a", "m", keepdims=0), node("Mul", "w m", "v"), node("Conv", "x v b", "c"), norm("c", "y")],
            {**CONV, "a": axes(0, 1, 2, 3)},
        ),
        REASON.NOT_CONSTANT,
        "v is computed",
    ),
    "a weight behind DequantizeLinear": (
        model(
            [node("DequantizeLinear", "q scale", "v"), node("Conv", "x v b", "c"), norm("c", "y")],
            {**{k: v.astype(np.float32) for k, v in CONV.items()}, "q": np.ones((4, 3, 3, 3), np.int8), "scale": np.array(0.5, np.float32)},
            dtype=TensorProto.FLOAT,
        ),
        REASON.NOT_CONSTANT,
        "v is computed",
    ),
    "before a convolution that pads zeros": (
        model([node("Relu", "x", "r"), norm("r", "n"), node("Conv", "n w", "y", auto_pad="SAME_LOWER")], {"w": CONV["w"], **norm_constants(3)}),
        REASON.PADDED,
        "Conv",
    ),
    "statistics of the batch": (
        model(
            [
                HEAD,
                node("ReduceMean", "c a", "mean", keepdims=0),
                node("ReduceMean", "c a", "m"),
                node("Sub", "c m", "d"),
                node("Mul", "d d", "e"),
                node("ReduceMean", "e a", "var", keepdims=0),
                node("BatchNormalization", "c bn.weight bn.bias mean var", "y"),
            ],
            {**CONV, "a": axes(0, 2, 3)},
        ),
        REASON.NO_RUNNING_STATISTICS,
        "it keeps no running ones",
    ),
    "a subgraph reads the convolution": (
        model(
            [
                HEAD,
                norm("c", "n"),
                node("ReduceSum", "x", "s", keepdims=0),
                node("Greater", "s zero", "is"),
                node(
                    "If",
                    "is",
                    "i",
                    then_branch=helper.make_graph(
                        [node("Relu", "c", "then")], "t", [], [helper.make_tensor_value_info("then", TensorProto.DOUBLE, None)]
                    ),
                    else_branch=helper.make_graph(
                        [node("Identity", "n", "else")], "e", [], [helper.make_tensor_value_info("else", TensorProto.DOUBLE, None)]
                    ),
                ),
                node("Add", "i n", "y"),
            ],
            {**CONV, "zero": np.array(0.0)},
        ),
        REASON.OTHER_CONSUMER,
        "If",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_with_its_reason(case):
    """The BatchNorm is kept, the reason is the true one, the culprit is named, and the function stays."""
    given, reason, culprit = CASES[case]
    fold = folded(given)
    name = "node_y" if case == "statistics of the batch" else "bn"  # its statistics have no name
    assert [(refusal.batch_norm, refusal.reason) for refusal in fold.refusals] == [(name, reason)]
    assert culprit in " ".join(fold.refusals[0].culprits) + fold.refusals[0].detail
    assert (fold.folded, fold.num_batch_norms) == ((), 1)
    assert ops_of(fold.model).count("BatchNormalization") == 1
    if case != "a weight behind DequantizeLinear":
        shape = tuple(dim.dim_value for dim in given.graph.input[0].type.tensor_type.shape.dim)
        assert error_of(given, fold, shape) <= BOUND


def test_training_mode_is_refused():
    """A BatchNormalization with training_mode = 1, or one that returns new statistics, is in training mode."""
    for attributes, more in (({"training_mode": 1}, ""), ({"training_mode": 1}, " mean var")):
        fold = folded(model([HEAD, norm("c", f"y{more}", **attributes)], CONV))
        assert [refusal.reason for refusal in fold.refusals] == [REASON.TRAINING]
    old = folded(model([HEAD, norm("c", "y mean var saved_mean saved_var")], CONV, opset=9))
    assert [refusal.reason for refusal in old.refusals] == [REASON.TRAINING]


def test_an_initializer_that_an_input_may_replace_is_no_constant():
    """From version 4 of the format on, an initializer that is an input too may be replaced by whoever runs the model: it is named."""
    given = model([HEAD, norm("c", "y")], CONV)
    given.graph.input.append(helper.make_tensor_value_info("w", TensorProto.DOUBLE, CONV["w"].shape))
    fold = folded(given)
    assert [refusal.reason for refusal in fold.refusals] == [REASON.NOT_CONSTANT]
    assert "w, which an input of the model may replace" in fold.refusals[0].culprits
    assert [value.name for value in fold.model.graph.input] == ["x", "w"]


def test_up_to_version_3_of_the_format_initializers_are_constants():
    """There every initializer has to be an input, so it means nothing; the folded file lists its own as well and passes the checker."""
    given = model([node("Conv", "x w", "c"), norm("c", "y")], {name: array for name, array in CONV.items() if name != "b"}, opset=9)
    given.ir_version = 3
    given.graph.input.extend(helper.make_tensor_value_info(tensor.name, TensorProto.DOUBLE, tensor.dims) for tensor in given.graph.initializer)
    fold = folded(given)
    assert [each.batch_norm for each in fold.folded] == ["bn"]
    assert [value.name for value in fold.model.graph.input] == ["x", "w", "c.bias"]
    onnx.checker.check_model(fold.model, full_check=True)
    assert error_of(given, fold, IMAGE) <= BOUND


def test_a_batch_norm_in_a_subgraph_is_counted_and_refused():
    """A BatchNormalization in a branch of an If is not overlooked: it is refused by name."""
    branches = {
        f"{name}_branch": helper.make_graph(inner, name, [], [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None)])
        for name, inner in (("then", [norm("c", "then")]), ("else", [node("Relu", "c", "else")]))
    }
    given = model(
        [HEAD, node("ReduceSum", "x", "s", keepdims=0), node("Greater", "s zero", "is"), node("If", "is", "y", **branches)],
        {**CONV, "zero": np.array(0.0)},
    )
    fold = folded(given)
    assert (fold.num_batch_norms, fold.folded) == (1, ())
    assert [(refusal.batch_norm, refusal.reason) for refusal in fold.refusals] == [("bn", REASON.NOT_LINEAR)]
    assert "subgraph" in fold.refusals[0].detail


def test_configured_names_are_kept():
    """``fold.keep`` leaves the named BatchNorms alone and says so; the others are folded."""
    given = model(
        [HEAD, norm("c", "n"), node("Conv", "n v", "d"), norm("d", "y", "head.bn")],
        {**CONV, "v": numbers(4, 4, 1, 1), **norm_constants(4, "head.bn")},
    )
    fold = folded(given, keep=("head.*",))
    assert [(refusal.batch_norm, refusal.reason) for refusal in fold.refusals] == [("head.bn", REASON.ISOLATED)]
    assert [each.batch_norm for each in fold.folded] == ["bn"]
    assert error_of(given, fold, IMAGE) <= BOUND


def test_opsets_that_are_not_read():
    """A model of opset 6, or of one that does not exist yet, is refused with what is read."""
    given = model([HEAD, norm("c", "y")], CONV)
    for version in (6, onnx.defs.onnx_opset_version() + 1):
        given.opset_import[0].version = version
        with pytest.raises(FoldError, match=rf"E381.*\n.*opset {version}"):
            folded(given)


def test_what_the_fold_would_lose_is_refused():
    """A file with sparse initializers or training information is left alone rather than cut short."""
    given = model([HEAD, norm("c", "y")], CONV)
    given.graph.sparse_initializer.append(
        helper.make_sparse_tensor(onnx.numpy_helper.from_array(np.ones(1), "s"), onnx.numpy_helper.from_array(axes(0), "i"), [3])
    )
    with pytest.raises(FoldError, match=r"E382.*\n.*sparse_initializer"):
        folded(given)


def test_functions_that_call_themselves():
    """Functions that cannot be inlined are an error that says which."""
    given = model([HEAD, norm("c", "y")], CONV)
    given.graph.node.append(helper.make_node("F", ["y"], ["z"], domain="own"))
    given.opset_import.append(helper.make_opsetid("own", 1))
    body = [helper.make_node("F", ["a"], ["b"], domain="own")]
    given.functions.append(helper.make_function("own", "F", ["a"], ["b"], body, [helper.make_opsetid("own", 1)]))
    with pytest.raises(FoldError, match="E383"):
        folded(given)


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin"], ids=["not there", "outside"])
def test_external_data_that_cannot_be_read(tmp_path, location):
    """External data that are not there, or outside the folder of the model, are an error that names the tensor."""
    (tmp_path / "weights.bin").write_bytes(bytes(4 * 27 * 8))
    home = tmp_path / "model"
    home.mkdir()
    given = model([HEAD, norm("c", "y")], CONV)
    tensor = given.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    with pytest.raises(ArtifactError, match=r"E385.*\n.*'w'"):
        folded(given, base=home)


def test_no_torch_is_needed():
    """The adapter is imported and folds a model without torch."""
    code = "import sys; from exporter.graph import fold_onnx; import exporter.graph.onnx.folding; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "False\n"
