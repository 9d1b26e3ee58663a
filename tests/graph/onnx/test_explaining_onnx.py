"""An ONNX file is explained like a network of torch: the same surroundings, with the culprits of the refusal marked."""

from __future__ import annotations

import pytest
from small_models import folded, model, node, norm, norm_constants, numbers

from exporter.graph.explaining import explain

CONV = {"w": numbers(4, 3, 3, 3), "b": numbers(4, seed=1), **norm_constants(4)}
HEAD = node("Conv", "x w b", "c")
CASES = {
    "behind a relu": (
        model([HEAD, node("Relu", "c", "r"), norm("r", "y")], CONV),
        [("the input x", "before"), ("Conv", "before"), ("Relu", "before"), ("BatchNormalization", "itself")],
        ["Relu", "BatchNormalization"],
    ),
    "second reader": (
        model([HEAD, norm("c", "n"), node("Relu", "c", "r"), node("Add", "n r", "y")], CONV),
        [("the input x", "before"), ("Conv", "before"), ("BatchNormalization", "itself"), ("Relu", "beside"), ("Add", "behind")],
        ["Relu", "Add"],
    ),
    "the convolution is an output": (
        model([HEAD, norm("c", "y")], CONV, outputs=("y", "c")),
        [("the input x", "before"), ("Conv", "before"), ("BatchNormalization", "itself")],
        ["Conv", "BatchNormalization"],
    ),
}


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_surroundings_of_a_kept_batch_norm(case):
    """What stands around the BatchNorm is found in the file, and just the culprits are marked."""
    given, expected, culprits = CASES[case]
    fold = folded(given)
    (item,) = explain(fold.sketch, fold.folded, fold.refusals)
    assert [(one.module if one.part == "input" else one.kind, one.place) for one in item.neighbours] == expected
    assert [one.kind for one in item.neighbours if one.is_culprit] == culprits
    assert item.remedy


def test_what_took_a_batch_norm_is_marked():
    """A folded BatchNorm shows the operator that took it; weights and other constants are no neighbours."""
    fold = folded(model([HEAD, norm("c", "n"), node("Relu", "n", "y")], CONV))
    (item,) = explain(fold.sketch, fold.folded, fold.refusals, "*")
    assert [(one.kind, one.takes_it) for one in item.neighbours] == [("input", False), ("Conv", True), ("BatchNormalization", False), ("Relu", False)]
