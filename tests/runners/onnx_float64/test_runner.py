"""ONNX models in float64: widened everywhere, inside graphs and functions too, or an error that names the operator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from exporter.artifacts import TensorSpec
from exporter.errors import InternalError, ModelNotSupported, SampleError
from exporter.runners import OnnxFloat64Runner, Runner

THIRD = float(np.float32(1) / np.float32(3))
X = np.array([[1.0, 2.0, 3.0], [-4.0, 0.5, 1e-9]], np.float32)
SPEC = (TensorSpec("x", ("batch", 3), "float32"),)
OUT = (TensorSpec("y", ("batch", 3), "float32"),)


def _run(text: str, x: np.ndarray = X) -> np.ndarray:
    model = parser.parse_model(text)
    with OnnxFloat64Runner("reference", model, SPEC, OUT) as runner:
        return runner.infer({"x": x})["y"]


def test_sums_that_float32_would_lose_are_kept() -> None:
    """``x + 1 - 1`` keeps what float32 rounds away; the output is float64."""
    y = _run("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[batch, 3] x) => (float[batch, 3] y) <float one = {1.0}> { a = Add(x, one)  y = Sub(a, one) }""")
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, X.astype(np.float64), rtol=1e-6, atol=1e-15)


def test_constants_casts_and_shapes_of_constants_are_widened() -> None:
    """A Constant's float, a cast to float16 and back, and a ConstantOfShape without a value are float64."""
    y = _run("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[batch, 3] x) => (float[batch, 3] y)
        { third = Constant<value_float = 0.3333333432674408>()
          h = Cast<to = 10>(x)
          f = Cast<to = 1>(h)
          s = Shape(x)
          zero = ConstantOfShape(s)
          p = Mul(f, third)
          y = Add(p, zero) }""")
    np.testing.assert_array_equal(y, X.astype(np.float64) * THIRD)


def test_branches_and_loops_read_the_outer_graph() -> None:
    """A constant inside a branch is widened, and an outer value that only the branch reads is kept until then."""
    y = _run("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[batch, 3] x) => (float[batch, 3] y)
        { outer = Exp(x)
          total = ReduceSum<keepdims = 0>(x)
          many = Constant<value_float = 1000.0>()
          large = Greater(total, many)
          y = If (large) <then_branch = t () => (float[batch, 3] a) { a = Identity(x) },
                          else_branch = e () => (float[batch, 3] b) { c = Constant<value = float {0.1}>()  b = Mul(outer, c) }> }""")
    np.testing.assert_allclose(y, np.exp(X.astype(np.float64)) * float(np.float32(0.1)), rtol=1e-15)


def test_functions_are_inlined() -> None:
    """A function's own constants are widened too, and its attributes reach its nodes."""
    y = _run("""
        <ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[batch, 3] x) => (float[batch, 3] y) { y = local.scaled<by = 0.1>(x) }
        <domain: "local", opset_import: ["": 17]>
        scaled<by>(x) => (y) { c = Constant<value_float: float = @by>()  y = Mul(x, c) }""")
    np.testing.assert_array_equal(y, X.astype(np.float64) * float(np.float32(0.1)))


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision_is_widened_exactly(dtype: int) -> None:
    """Weights in half precision mean exactly what they hold."""
    weight = helper.make_tensor("w", dtype, (3,), np.array([1.5, 0.25, -3.0]))
    nodes = [helper.make_node("Cast", ["x"], ["h"], to=dtype), helper.make_node("Mul", ["h", "w"], ["p"])]
    nodes.append(helper.make_node("Cast", ["p"], ["y"], to=TensorProto.FLOAT))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 3)) for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], [weight]), opset_imports=[helper.make_opsetid("", 17)])
    with OnnxFloat64Runner("reference", model, SPEC, OUT) as runner:
        np.testing.assert_array_equal(runner.infer({"x": X})["y"], X.astype(np.float64) * [1.5, 0.25, -3.0])


def test_sparse_weights_are_spread_out() -> None:
    """A sparse initializer is a weight like any other."""
    values = numpy_helper.from_array(np.array([2.0, 5.0], np.float32), "w")
    places = numpy_helper.from_array(np.array([0, 2], np.int64), "w_places")
    sparse = helper.make_sparse_tensor(values, places, [3])
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 3)) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "g", info[:1], info[1:], sparse_initializer=[sparse])
    with OnnxFloat64Runner("reference", helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), SPEC, OUT) as runner:
        np.testing.assert_array_equal(runner.infer({"x": X})["y"], X.astype(np.float64) * [2.0, 0.0, 5.0])


@pytest.mark.parametrize(
    ("node", "why"),
    [
        pytest.param("y = com.example.Magic(x)", "com.example::Magic", id="a domain of somebody's own"),
        pytest.param("y = RandomNormalLike(x)", "random numbers", id="random numbers"),
        pytest.param("y = Mystery(x)", "Mystery", id="no such operator"),
    ],
)
def test_an_operator_that_is_not_known_is_named(node: str, why: str) -> None:
    """The error names operator and node; nothing is computed in its place."""
    text = f"""<ir_version: 8, opset_import: ["": 17, "com.example": 1]> g (float[batch, 3] x) => (float[batch, 3] y) {{ [here] {node} }}"""
    with pytest.raises(ModelNotSupported, match="E621") as caught:
        _run(text)
    assert why in caught.value.facts["found"]
    assert "here" in caught.value.facts["found"]


def test_an_operator_that_fails_on_the_inputs_is_named() -> None:
    """Shapes that do not fit inside the graph end with the operator's name too."""
    with pytest.raises(ModelNotSupported, match="E621") as caught:
        _run("""<ir_version: 8, opset_import: ["": 17]>
            g (float[batch, 3] x) => (float[batch, 3] y) <float[4] w = {1, 2, 3, 4}> { [here] y = Add(x, w) }""")
    assert "Add, node 'here'" in caught.value.facts["found"]


def test_the_runner_keeps_the_protocol() -> None:
    """Feeds are checked in the model's own dtypes, calls can be timed, and outside ``with`` nothing runs."""
    model = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]> g (float[batch, 3] x) => (float[batch, 3] y) { y = Neg(x) }""")
    runner = OnnxFloat64Runner("reference", model, SPEC, OUT)
    assert isinstance(runner, Runner)
    with pytest.raises(InternalError, match="E961"):
        runner.infer({"x": X})
    with runner:
        assert runner.prepare({"x": X}).run_block(3).shape == (3,)
        with pytest.raises(SampleError, match="E613"):
            runner.infer({"x": X.astype(np.float64)})
        with pytest.raises(SampleError, match="E612"):
            runner.infer({"x": X[:, :2]})


def test_a_value_is_dropped_after_its_last_reader() -> None:
    """Of a long chain, no more than a few values are alive at once."""
    import weakref

    nodes = [helper.make_node("Exp" if index else "Identity", [f"v{index}" if index else "x"], [f"v{index + 1}"]) for index in range(20)]
    nodes[-1].output[0] = "y"
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 3)) for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:]), opset_imports=[helper.make_opsetid("", 17)])
    seen: list[weakref.ref[np.ndarray]] = []
    most = 0

    def observe(_node: onnx.NodeProto, outputs: tuple[np.ndarray, ...]) -> None:
        nonlocal most
        most = max(most, sum(reference() is not None for reference in seen))
        seen.append(weakref.ref(outputs[0]))

    with OnnxFloat64Runner("reference", model, SPEC, OUT) as runner:
        runner.observe({"x": X}, observe)
    assert len(seen) == 20
    assert most <= 4
