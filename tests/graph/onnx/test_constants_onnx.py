"""What does not depend on the inputs is computed ahead: as ONNX's own evaluator does it, in float64, within bounds, and never guessed."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from small_models import BOUND, IMAGE, constant_of, error_of, folded, model, node, norm, norm_constants, numbers, ops_of

from exporter.artifacts import RefusalReason
from exporter.graph.onnx.evaluation import OPERATORS, evaluated

A, B = numbers(2, 3, 4), numbers(3, 4, seed=1)


def whole(*given: int) -> np.ndarray:
    return np.array(given, dtype=np.int64)


EVALUATED = {
    "Add": ("Add", (A, B), {}),
    "Sub": ("Sub", (A, B), {}),
    "Mul": ("Mul", (A, B), {}),
    "Div": ("Div", (A, B), {}),
    "Div, whole numbers": ("Div", (whole(-7, 7, 9), whole(2, -2, 3)), {}),
    "Pow": ("Pow", (np.abs(A), B), {}),
    "Min": ("Min", (A, B), {}),
    "Max": ("Max", (A, B), {}),
    "Equal": ("Equal", (whole(1, 2), whole(1, 3)), {}),
    "Less": ("Less", (A, B), {}),
    "Greater": ("Greater", (A, B), {}),
    "And": ("And", (A > 0, B > 0), {}),
    "Or": ("Or", (A > 0, B > 0), {}),
    "Where": ("Where", (A > 0, A, B), {}),
    "Not": ("Not", (A > 0,), {}),
    "Abs": ("Abs", (A,), {}),
    "Ceil": ("Ceil", (A,), {}),
    "Exp": ("Exp", (A,), {}),
    "Floor": ("Floor", (A,), {}),
    "Identity": ("Identity", (A,), {}),
    "Log": ("Log", (np.abs(A),), {}),
    "Neg": ("Neg", (A,), {}),
    "Reciprocal": ("Reciprocal", (A,), {}),
    "Sqrt": ("Sqrt", (np.abs(A),), {}),
    "Cast": ("Cast", (whole(1, 2),), {"to": TensorProto.DOUBLE}),
    "Cast to whole numbers": ("Cast", (np.array([1.0, -2.0]),), {"to": TensorProto.INT64}),
    "ConstantOfShape": ("ConstantOfShape", (whole(2, 3),), {"value": numpy_helper.from_array(np.array([2.5]))}),
    "Expand": ("Expand", (B, whole(2, 1, 4)), {}),
    "Tile": ("Tile", (B, whole(2, 3)), {}),
    "Reshape": ("Reshape", (A, whole(0, -1)), {}),
    "Transpose": ("Transpose", (A,), {"perm": [2, 0, 1]}),
    "Transpose, turned round": ("Transpose", (A,), {}),
    "Flatten": ("Flatten", (A,), {"axis": 2}),
    "Squeeze": ("Squeeze", (A[:, :, None], whole(2)), {}),
    "Unsqueeze": ("Unsqueeze", (A, whole(1, -1)), {}),
    "Concat": ("Concat", (A, A), {"axis": 1}),
    "Slice": ("Slice", (A, whole(1, 0), whole(9, -1), whole(1, 2), whole(1, 2)), {}),
    "Gather": ("Gather", (A, whole(2, 0)), {"axis": 1}),
    "Range": ("Range", (np.array(1), np.array(9), np.array(3)), {}),
    "MatMul": ("MatMul", (A, B.T), {}),
    "ReduceMean": ("ReduceMean", (A, whole(0, 2)), {"keepdims": 0}),
    "ReduceMean, all axes": ("ReduceMean", (A,), {}),
    "ReduceSum": ("ReduceSum", (A, whole(1)), {}),
    "ReduceProd": ("ReduceProd", (A, whole(1)), {}),
    "ReduceMax": ("ReduceMax", (A, whole(1)), {}),
    "ReduceMin": ("ReduceMin", (A, whole(1)), {}),
    "ReduceL1": ("ReduceL1", (A, whole(1)), {}),
    "ReduceL2": ("ReduceL2", (A, whole(1, 2)), {}),
    "ReduceSumSquare": ("ReduceSumSquare", (A, whole(1)), {}),
    "BatchNormalization": ("BatchNormalization", (A, *norm_constants(3).values()), {}),
}


@pytest.mark.parametrize("case", EVALUATED)
def test_operators_make_what_onnx_makes(case):
    """Each operator of the table gives the numbers, the shape and the kind of dtype of ONNX's own evaluator."""
    op_type, arrays, attributes = EVALUATED[case]
    names = [f"in{number}" for number in range(len(arrays))]
    proto = helper.make_node(op_type, names, ["out"], **attributes)
    graph = helper.make_graph(
        [proto],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(names, arrays, strict=True)
        ],
        [helper.make_empty_tensor_value_info("out")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    expected = np.asarray(ReferenceEvaluator(made).run(None, dict(zip(names, arrays, strict=True)))[0])
    got = evaluated(next(iter(ir.from_proto(made).graph)), arrays, 20)
    assert got is not None
    assert (got.shape, got.dtype.kind) == (expected.shape, expected.dtype.kind)
    assert np.allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_every_operator_of_the_table_is_compared():
    """No operator computes constants that is not compared with ONNX's evaluator above."""
    assert {op_type for op_type, _, _ in EVALUATED.values()} == set(OPERATORS)


@pytest.mark.parametrize(
    ("op_type", "arrays"),
    [
        ("Expand", (np.ones(1), whole(1 << 20, 1 << 20))),
        ("ConstantOfShape", (whole(1 << 40),)),
        ("Tile", (np.ones(4), whole(1 << 40))),
        ("Range", (np.array(0), np.array(1 << 40), np.array(1))),
        ("Mul", (np.ones((1 << 16, 1)), np.ones((1, 1 << 16)))),
        ("MatMul", (np.ones((1 << 16, 1)), np.ones((1, 1 << 16)))),
        ("Reshape", (np.ones(4), whole(3, 5))),
        ("Div", (whole(1), whole(0))),
        ("Cast", (np.array([np.nan]),)),
        ("Gather", (np.ones(3), whole(7))),
    ],
)
def test_what_is_too_large_or_does_not_fit_is_not_computed(op_type, arrays):
    """Arguments that make a constant beyond the bound, or none at all, give nothing, and no memory is filled on the way."""
    made = ir.from_proto(
        helper.make_node(
            op_type, [f"in{number}" for number in range(len(arrays))], ["out"], **({"to": TensorProto.INT64} if op_type == "Cast" else {})
        )
    )
    tracemalloc.start()
    try:
        assert evaluated(made, arrays, 20) is None
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_huge_constant_makes_a_refusal():
    """A weight that would be computed beyond the bound is not constant: the BatchNorm is refused, nothing is filled."""
    nodes = [
        node("Expand", "one size", "huge"),
        node("ReduceMean", "huge", "m", keepdims=0),
        node("Mul", "w m", "v"),
        node("Conv", "x v", "c"),
        norm("c", "y"),
    ]
    given = model(nodes, {"one": np.ones(1), "size": whole(1 << 20, 1 << 20), "w": numbers(4, 3, 3, 3), **norm_constants(4)})
    fold = folded(given)
    assert [refusal.reason for refusal in fold.refusals] == [RefusalReason.NOT_CONSTANT]


NORM = {name.partition(".")[2]: array.reshape(1, 4, 1, 1) for name, array in norm_constants(4).items()}
CHAINS = {
    "divided by a root": [
        node("Sub", "c running_mean", "batchnorm/sub"),
        node("Add", "running_var eps", "v"),
        node("Sqrt", "v", "root"),
        node("Div", "batchnorm/sub root", "q"),
        node("Mul", "q weight", "p"),
        node("Add", "p bias", "y"),
    ],
    "times a power": [
        node("Add", "running_var eps", "v"),
        node("Pow", "v half", "r"),
        node("Mul", "r weight", "s"),
        node("Mul", "s c", "p"),
        node("Mul", "running_mean s", "m"),
        node("Sub", "bias m", "t"),
        node("Add", "t p", "batch_norm_out"),
        node("Identity", "batch_norm_out", "y"),
    ],
    "times a reciprocal, turned round": [
        node("Add", "running_var eps", "v"),
        node("Sqrt", "v", "root"),
        node("Reciprocal", "root", "r"),
        node("Sub", "running_mean c", "d"),
        node("Mul", "d r", "BatchNorm/mul"),
        node("Add", "BatchNorm/mul bias", "y"),
    ],
}


@pytest.mark.parametrize("name", CHAINS)
def test_batch_norms_in_parts(name):
    """Products and sums with constants of each channel are one BatchNorm, by whatever its numbers were computed; its name says that it is one."""
    given = model(
        [node("Conv", "x w", "c"), *CHAINS[name]],
        {"w": numbers(4, 3, 3, 3), **NORM, "eps": np.array(1e-5), "half": np.array(-0.5)},
    )
    fold = folded(given)
    assert (len(fold.folded), fold.refusals, fold.num_batch_norms) == (1, (), 1)
    assert ops_of(fold.model) in (["Conv"], ["Conv", "Identity"])
    assert error_of(given, fold, IMAGE) <= BOUND


def test_batch_norms_in_parts_are_refused_by_name():
    """One that stands behind an activation is refused under the name of its node, if the file calls it a BatchNorm; else it is left as it is."""
    for output, refused in (("batchnorm/add", ["node_batchnorm/add"]), ("plain", [])):
        given = model(
            [node("Relu", "x", "r"), node("Mul", "r s", "p"), node("Add", "p t", output), node("Relu", output, "y")],
            {"s": numbers(1, 3, 1, 1), "t": numbers(1, 3, 1, 1)},
        )
        fold = folded(given)
        assert [refusal.batch_norm for refusal in fold.refusals] == refused
        assert fold.num_batch_norms == len(refused)
        assert error_of(given, fold, IMAGE) <= BOUND


def test_a_standardised_weight_is_computed_with_its_batch_norm():
    """A BatchNorm over the weight is computed ahead and counted; the weight is rounded once."""
    given = model(
        [
            node("Reshape", "w rows", "r"),
            node("BatchNormalization", "r one zero mean var", "n"),
            node("Reshape", "n kernel", "v"),
            node("Conv", "x v", "y"),
        ],
        {
            "w": numbers(4, 3, 3, 3),
            "rows": whole(1, 4, 27),
            "kernel": whole(4, 3, 3, 3),
            "one": np.ones(4),
            "zero": np.zeros(4),
            "mean": numbers(4, 27).mean(1),
            "var": np.full(4, 0.5),
        },
    )
    fold = folded(given)
    assert [(each.direction, each.producer) for each in fold.folded] == [("constant", "a constant")]
    assert ops_of(fold.model) == ["Conv"]
    assert error_of(given, fold, IMAGE) <= BOUND


def test_functions_are_inlined():
    """A BatchNorm inside a function of the model's own is folded at every call of it, under names that are told apart."""
    body = [helper.make_node("Conv", ["a", "k"], ["c"]), helper.make_node("BatchNormalization", ["c", "g", "h", "m", "v"], ["z"])]
    function = helper.make_function("own", "Block", ["a", "k", "g", "h", "m", "v"], ["z"], body, [helper.make_opsetid("", 20)])
    parts = "bn.weight bn.bias bn.running_mean bn.running_var"
    calls = [node("Block", f"x w {parts}", "c", domain="own"), node("Relu", "c", "r"), node("Block", f"r k {parts}", "y", domain="own")]
    given = model([node("Identity", "x", "y")], {"w": numbers(4, 3, 3, 3), "k": numbers(4, 4, 1, 1), **norm_constants(4)})
    del given.graph.node[:]
    given.graph.node.extend(calls)
    given.opset_import.append(helper.make_opsetid("own", 1))
    given.functions.append(function)
    given.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.DOUBLE, (2, 4, 6, 6)))
    fold = folded(given)
    assert [each.batch_norm for each in fold.folded] == ["bn", "bn (call 2)"]
    assert (len(fold.model.functions), ops_of(fold.model)) == (0, ["Conv", "Relu", "Conv"])
    assert error_of(given, fold, IMAGE) <= BOUND
    onnx.checker.check_model(fold.model, full_check=True)


def test_external_data_are_read_and_what_stays_stays_outside(tmp_path):
    """A weight in a file beside the model is folded into the message; one that the fold leaves as it is stays where it was."""
    given = model(
        [node("Conv", "x w", "c"), norm("c", "n"), node("Conv", "n v", "y")],
        {"w": numbers(4, 3, 3, 3), "v": numbers(5, 4, 3, 3), **norm_constants(4)},
    )
    plain = onnx.ModelProto.FromString(given.SerializeToString())
    for tensor in given.graph.initializer:
        (tmp_path / f"{tensor.name}.bin").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"{tensor.name}.bin")
    fold = folded(given, base=tmp_path)
    assert [each.batch_norm for each in fold.folded] == ["bn"]
    outside = {tensor.name for tensor in fold.model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL}
    assert outside == {"v"}
    expected = folded(plain)
    assert np.array_equal(constant_of(fold.model, "w"), constant_of(expected.model, "w"))
