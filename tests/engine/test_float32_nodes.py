"""The float32 islands of a model in float16, for a TensorRT whose networks have no types."""

from __future__ import annotations

import dataclasses
import json

import pytest
from releases import RELEASES

from exporter.engine import build_engine, parse_profiles
from exporter.engine.float32_nodes import find_float32_nodes

NETWORK = """
<ir_version: 8, opset_import: ["": 17]>
net (float[batch,1,8,8] image) => (float[batch,10] logits)
<float16[10,64] w, int64[2] s = {0, 64}>
{
    flat = Reshape(image, s)
    half = Cast<to = 10>(flat)
    y = Gemm<transB = 1>(half, w)
    wide = Cast<to = 1>(y)
    p = Softmax(wide)
    e = Exp(p)
    k = Shape(e)
    r = Reshape(e, k)
    small = Cast<to = 10>(r)
    z = Relu(small)
    logits = Cast<to = 1>(z)
}
"""
NAMES = {"Reshape": "flatten", "Gemm": "soft_2", "Softmax": "soft", "Relu": "relu", "Shape": "soft_7"}


@pytest.fixture
def half_model(make_model):
    """A model in float16: float32 up to its first cast, and from there a softmax and a node without a name."""
    import numpy as np
    import onnx
    import onnx.parser

    proto = onnx.parser.parse_model(NETWORK)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.zeros((10, 64), np.float16), "w"))
    for node in proto.graph.node:
        node.name = NAMES.get(node.op_type, "") if node.output[0] != "r" else "back"
    return dataclasses.replace(make_model(proto.SerializeToString()), metadata={"exporter.precision": "float16"}, precision="float16")


def test_float32_nodes_are_those_that_compute_in_float32(half_model):
    """Neither casts nor whole numbers count, a node without a name has the one that the parser gives it, and namesakes are told apart."""
    found = find_float32_nodes(half_model)
    assert found.outputs == {"flatten": ("flat",), "soft": ("p",), "node_of_e": ("e",), "back": ("r",)}
    assert found.namesakes == ("soft_2", "soft_7")


def test_a_model_in_one_precision_has_none(half_model):
    """There is nothing to hold where the builder may not choose float16."""
    assert find_float32_nodes(dataclasses.replace(half_model, precision="float32")).outputs == {}


@pytest.mark.parametrize("release", [RELEASES[1], RELEASES[-1]], ids=str)
def test_the_sidecar_says_what_was_held(half_model, config, scenario, release, run_cli, tmp_path):
    """Islands without a layer are named; a strongly typed network has nothing to say of them."""
    scenario(layer_dtype="FP16", layers=[{"name": "soft", "outputs": [["p", "FLOAT"]]}])
    plan = build_engine(half_model, tmp_path / "a.plan", config, parse_profiles((), half_model.inputs, batch=8), key="0" * 64)
    content = json.loads(plan.sidecar_path.read_text())["content"]
    is_weakly_typed = release.number < (10, 0)
    assert content["float32_layers"] == ({"layers": 1, "not_found": ["back", "flatten", "node_of_e"]} if is_weakly_typed else {})
    assert ("float32  layers held: 1; nodes without a layer: back, flatten, node_of_e" in run_cli("inspect", plan.path).stdout) == is_weakly_typed
