"""Products and sums that stand alone in an ONNX file go into the products beside them, as those of a traced network do."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import BOUND, error_of, folded, model, node, numbers, ops_of

CONV = node("Conv", "x w", "c")
WEIGHT = {"w": numbers(4, 3, 3, 3)}
CHANNELS = {"k": numbers(4, 1, 1, seed=1)}

TAKEN = {
    "a layer scale": ([CONV, node("Mul", "c k", "m"), node("Sigmoid", "m", "y")], {**WEIGHT, **CHANNELS}, ["Conv", "Sigmoid"]),
    "a divisor": ([CONV, node("Div", "c k", "m"), node("Sigmoid", "m", "y")], {**WEIGHT, **CHANNELS}, ["Conv", "Sigmoid"]),
    "taken from a constant": ([CONV, node("Sub", "k c", "m"), node("Sigmoid", "m", "y")], {**WEIGHT, **CHANNELS}, ["Conv", "Sigmoid"]),
    "a single number": ([CONV, node("Mul", "c k", "m"), node("Sigmoid", "m", "y")], {**WEIGHT, "k": np.array(0.5)}, ["Conv", "Sigmoid"]),
    "a layer scale that is one": (
        [CONV, node("Mul", "c k", "m"), node("Sigmoid", "m", "y")],
        {**WEIGHT, "k": np.ones((4, 1, 1))},
        ["Conv", "Sigmoid"],
    ),
    "a factor and an offset, past what does nothing": (
        [node("Sigmoid", "x", "s"), node("Mul", "s k", "m"), node("Add", "m b", "a"), node("Identity", "a", "i"), node("Conv", "i w", "y")],
        {**WEIGHT, "k": np.array([0.9]), "b": np.array([-0.4])},
        ["Sigmoid", "Identity", "Conv"],
    ),
    "in front": (
        [node("Sigmoid", "x", "s"), node("Div", "s k", "m"), node("Conv", "m w", "c", pads=[1, 1, 1, 1]), node("Sigmoid", "c", "y")],
        {**WEIGHT, "k": np.array(255.0)},
        ["Sigmoid", "Conv", "Sigmoid"],
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_it_is_gone(name):
    """It is reported apart from BatchNorms, and the function stays."""
    nodes, constants, left = TAKEN[name]
    given = model(nodes, constants)
    fold = folded(given)
    assert (fold.folded, fold.refusals, fold.num_batch_norms, len(fold.absorbed)) == ((), (), 0, 1)
    assert ops_of(fold.model) == left
    assert error_of(given, fold) <= BOUND
    onnx.checker.check_model(fold.model, full_check=True)


ERF = [node("Div", "x k", "d"), node("Erf", "d", "e"), node("Add", "e one", "a"), node("Mul", "x a", "b"), node("Mul", "b half", "m")]
KEPT = {
    "another reader": ([CONV, node("Mul", "c k", "m"), node("Add", "m c", "y")], {**WEIGHT, **CHANNELS}),
    "an output": ([CONV, node("Mul", "c k", "m"), node("Sigmoid", "m", "y")], {**WEIGHT, **CHANNELS}, ("y", "c")),
    "no product beside it": ([node("Sigmoid", "x", "s"), node("Mul", "s k", "m"), node("Sigmoid", "m", "y")], {"k": np.array(2.0)}),
    "divided by the data": ([CONV, node("Div", "k c", "m"), node("Sigmoid", "m", "y")], {**WEIGHT, **CHANNELS}),
    "part of a GELU": (
        [*ERF, node("Conv", "m w", "y")],
        {**WEIGHT, "k": np.array(2**0.5), "one": np.array(1.0), "half": np.array(0.5)},
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_it_stays(name):
    """It is no refusal, and every node stays."""
    nodes, constants, *outputs = KEPT[name]
    fold = folded(model(nodes, constants, outputs=outputs[0] if outputs else ("y",)))
    assert (fold.absorbed, fold.folded, fold.refusals, fold.num_batch_norms) == ((), (), (), 0)
    assert ops_of(fold.model) == [each.op_type for each in nodes]
