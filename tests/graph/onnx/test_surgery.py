"""Plans are carried out as they say: copies, borders and channels of ones; each against the formula, in float64."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from small_models import BOUND, error_of, model, node, norm, norm_constants, numbers, ops_of, run

from exporter.graph.onnx.opening import closed
from exporter.graph.onnx.reading import read_model
from exporter.graph.onnx.shapes import types_of
from exporter.graph.onnx.surgery import folded_model
from exporter.graph.planning import Copy, NewNumbers, Plan


def carried_out(given: onnx.ModelProto, **plan: object) -> onnx.ModelProto:
    """Return a model with a plan done."""
    working = ir.from_proto(given)
    reading = read_model(working, types_of(working))
    result = closed(folded_model(reading, Plan(**{"numbers": (), "bypasses": (), "folded": (), "refusals": (), **plan})))
    onnx.checker.check_model(result, full_check=True)
    return result


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("opset", [9, 20])
@pytest.mark.parametrize("batch", [2, "batch"], ids=["fixed", "dynamic"])
def test_ones(groups, opset, batch):
    """A channel of ones behind those of each group, padded with zeros like them: what a convolution of the ones alone would add."""
    attributes = {"pads": [1, 1, 1, 1], "group": groups}
    weight, further = numbers(6, 4 // groups, 3, 3), numbers(6, 1, 3, 3, seed=2)
    given = model([node("Conv", "x w", "y", **attributes)], {"w": weight}, shape=(batch, 4, 5, 5), opset=opset)
    changed = carried_out(given, numbers=(NewNumbers("y", weight, None, ones=further),))
    x = numbers(2, 4, 5, 5, seed=5)
    alone = model([node("Conv", "x w", "y", **attributes)], {"w": further}, shape=(2, groups, 5, 5))
    expected = run(given, x)[0] + run(alone, np.ones((2, groups, 5, 5)))[0]
    assert np.abs(run(changed, x)[0] - expected).max() <= BOUND
    assert ops_of(changed)[-1] == "Conv"


def test_border():
    """A border is added behind the convolution, and its readers and the output read the sum."""
    weight, border = numbers(4, 3, 3, 3), numbers(1, 4, 8, 8, seed=2)
    given = model([node("Conv", "x w", "c", pads=[1, 1, 1, 1]), node("Relu", "c", "y")], {"w": weight}, outputs=("y", "c"))
    changed = carried_out(given, numbers=(NewNumbers("c", weight, None, border=border),))
    x = numbers(2, 3, 8, 8, seed=5)
    expected = run(given, x)[1] + border
    assert np.abs(run(changed, x)[1] - expected).max() <= BOUND
    assert np.abs(run(changed, x)[0] - np.maximum(expected, 0)).max() <= BOUND
    assert [value.name for value in changed.graph.output] == ["y", "c"]


def test_a_copy_has_numbers_of_its_own():
    """A convolution made twice: one reader gets the copy with other numbers, the other reader the original with the same."""
    weight = numbers(4, 3, 3, 3)
    given = model([node("Conv", "x w", "c"), node("Relu", "c", "a"), node("Sigmoid", "c", "b"), node("Add", "a b", "y")], {"w": weight})
    changed = carried_out(given, copies=(Copy("c", "c again", ("a",)),), numbers=(NewNumbers("c again", 2.0 * weight, numbers(4)),))
    x = numbers(2, 3, 8, 8, seed=5)
    made = run(model([node("Conv", "x w", "y")], {"w": weight}), x)[0]
    expected = np.maximum(2.0 * made + numbers(4)[:, None, None], 0) + 1 / (1 + np.exp(-made))
    assert np.abs(run(changed, x)[0] - expected).max() <= BOUND
    assert sorted(ops_of(changed)) == ["Add", "Conv", "Conv", "Relu", "Sigmoid"]


def test_a_copy_of_a_product_and_its_added_bias():
    """A MatMul and the Add of its bias are copied together; a chain of products and sums reads the copy."""
    weight, bias = numbers(6, 4), numbers(4, seed=1)
    nodes = [
        node("MatMul", "x w", "m"),
        node("Add", "m b", "c"),
        node("Mul", "c s", "p"),
        node("Add", "p t", "a"),
        node("Relu", "c", "r"),
        node("Add", "a r", "y"),
    ]
    constants = {"w": weight, "b": bias, "s": numbers(4, seed=2), "t": numbers(4, seed=3)}
    given = model(nodes, constants, shape=(2, 5, 6))
    changed = carried_out(given, copies=(Copy("c", "c again", ("a",)),), numbers=(NewNumbers("c again", -weight, 2.0 * bias),))
    x = numbers(2, 5, 6, seed=5)
    made = x @ weight
    expected = (2.0 * bias - made) * constants["s"] + constants["t"] + np.maximum(made + bias, 0)
    assert np.abs(run(changed, x)[0] - expected).max() <= BOUND


def test_a_subgraph_reads_the_copy():
    """Where the reader is an If, what its branches read from around them is the copy."""
    branches = {
        f"{name}_branch": helper.make_graph([node(op, "c", name)], name, [], [helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, None)])
        for name, op in (("then", "Relu"), ("else", "Neg"))
    }
    nodes = [node("Conv", "x w", "c"), node("ReduceSum", "x", "s", keepdims=0), node("Greater", "s zero", "is"), node("If", "is", "i", **branches)]
    weight = numbers(4, 3, 3, 3)
    given = model([*nodes, node("Add", "i c", "y")], {"w": weight, "zero": np.array(0.0)})
    changed = carried_out(given, copies=(Copy("c", "twin", ("i",)),), numbers=(NewNumbers("twin", 3.0 * weight, None),))
    x = numbers(2, 3, 8, 8, seed=5)
    made = run(model([node("Conv", "x w", "y")], {"w": weight}), x)[0]
    taken = np.maximum(3.0 * made, 0) if x.sum() > 0 else -3.0 * made
    assert np.abs(run(changed, x)[0] - taken - made).max() <= BOUND


def test_numbers_of_a_batch_norm_that_stays():
    """A BatchNorm may get another gamma and beta; whoever else reads the old ones keeps them."""
    constants = norm_constants(3)
    given = model([norm("x", "n"), norm("n", "y")], constants)
    changed = carried_out(given, numbers=(NewNumbers("n", np.abs(constants["bn.weight"]), constants["bn.bias"]),))
    expected = model(
        [norm("x", "n", "other"), norm("n", "y")],
        {**constants, **{name.replace("bn.", "other."): array for name, array in constants.items()}, "other.weight": np.abs(constants["bn.weight"])},
    )
    x = numbers(2, 3, 8, 8, seed=5)
    assert np.abs(run(changed, x)[0] - run(expected, x)[0]).max() <= BOUND


def test_the_measure_sees_a_wrong_number():
    """One weight off by one part in a million is far above the bound: the comparison of these tests can fail."""
    given = model([node("Conv", "x w", "c"), norm("c", "y")], {"w": numbers(4, 3, 3, 3), **norm_constants(4)})
    wrong = numbers(4, 3, 3, 3)
    wrong[1] *= 1 + 1e-6

    class Wrong:
        model = carried_out(given, numbers=(NewNumbers("c", wrong, None),))

    assert error_of(given, Wrong) > 1e-9
