"""A model of a newer opset and the one it is lowered to compute the same; what has no form in opset 17 is refused by name."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import onnxruntime
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from operators import EQUAL, REFUSED, ROUNDED

from exporter.errors import ExportError
from exporter.onnx_export.lowering import lower_

ROUNDING = 2e-6
"""Relative L2 distance that another order of summation, or a formula for a kernel, may make in float32."""


def parsed(opset: int, inputs: str, outputs: str, constants: str, body: str) -> onnx.ModelProto:
    """Return the model; constants without values get random ones."""
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> g ({inputs}) => ({outputs}) {constants} {{ {body} }}')


def text_with_weights(constants: str) -> str:
    """Give a convolution's weight without values some."""
    numbers = ", ".join(f"{number:.3f}" for number in np.random.default_rng(3).standard_normal(36))
    constants = constants.replace("w>", f"w = {{{numbers}}}>")
    return constants.replace("axes = {1}>", "axes = {1}, int64[1] two = {2}>") if "two" not in constants else constants


def lowered(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in opset 17, which has passed ONNX's full checker."""
    lower = onnx_ir.from_proto(model)
    lower_(lower)
    proto = onnx_ir.to_proto(lower)
    onnx.checker.check_model(proto, full_check=True)
    assert [entry.version for entry in proto.opset_import if not entry.domain] == [17]
    assert proto.ir_version == 8
    return proto


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run the operators as they stand."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feed)


def feed_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return random inputs; a dynamic axis has size 2, or 3 where it is not the first."""
    rng = np.random.default_rng(7)
    feed = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = [dim.dim_value or (3 if axis else 2) for axis, dim in enumerate(dims)]
        feed[value.name] = rng.standard_normal(shape).astype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    return feed


@pytest.mark.parametrize("name", [*EQUAL, *ROUNDED])
def test_same_values(name):
    """The lowered operator computes what the newer one does: bit for bit where it is the same kernel, else within rounding."""
    opset, inputs, outputs, constants, body = {**EQUAL, **ROUNDED}[name]
    model = parsed(opset, inputs, outputs, text_with_weights(constants), body)
    feed = feed_of(model)
    for want, got in zip(run(model, feed), run(lowered(model), feed), strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        if name in EQUAL:
            np.testing.assert_array_equal(got, want)
        else:
            assert np.linalg.norm(got - want) <= ROUNDING * np.linalg.norm(want)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_refused_by_name(name):
    """The error names operator, node and reason, and says what to do."""
    opset, inputs, outputs, constants, body, code, op_type, reason = REFUSED[name]
    model = onnx_ir.from_proto(parsed(opset, inputs, outputs, constants, body))
    next(node for node in model.graph if node.op_type == op_type).name = "the node"
    with pytest.raises(ExportError) as caught:
        lower_(model)
    assert caught.value.code == code
    assert caught.value.facts["operator"] == f"{op_type} of opset {opset}"
    assert caught.value.facts["node"] == "the node"
    assert reason in caught.value.facts["found"]
    assert "TensorRT 10" in caught.value.help


def test_half_precision_group_normalization():
    """In float16 the statistics are still taken in float32."""
    model = parsed(21, "float16[N,6,8,8] x, float16[6] s, float16[6] b", "float16[N,6,8,8] y", "", "y = GroupNormalization<num_groups = 2>(x, s, b)")
    feed = feed_of(model)
    feed["x"] = (feed["x"] * 50 + 900).astype(np.float16)  # the sum of squares is beyond float16
    want, got = run(model, feed)[0].astype(np.float64), run(lowered(model), feed)[0].astype(np.float64)
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - want) <= 2e-3 * np.linalg.norm(want)


def test_older_models_keep_their_opset():
    """A model of opset 17 or older is left as it is; only the IR version is lowered."""
    model = onnx_ir.from_proto(parsed(13, "float[N,3] x", "float[N,1] y", "", "y = ReduceMean<axes = [1]>(x)"))
    lower_(model)
    assert (model.opset_imports[""], model.ir_version) == (13, 8)


def test_operators_of_other_domains_are_left_alone():
    """An operator of a vendor is the vendor's business."""
    text = '<ir_version: 9, opset_import: ["": 20, "com.example": 1]> g (float[N] x) => (float[N] y) { y = com.example.Antialias<antialias = 1>(x) }'
    model = onnx_ir.from_proto(onnx.parser.parse_model(text))
    lower_(model)
    assert [(node.domain, node.op_type) for node in model.graph] == [("com.example", "Antialias")]


def test_no_metadata_that_the_ir_version_does_not_know():
    """Metadata of nodes came with IR version 10: the module's name goes into the node's documentation."""
    model = onnx_ir.from_proto(parsed(20, "float[N,9] x", "float[N,9] y", "", "y = Gelu(x)"))
    model.graph[0].metadata_props["exporter.module"] = "blocks.0.act"
    lower_(model)
    assert not any(node.metadata_props for node in model.graph)
    assert {node.doc_string for node in model.graph} == {"exporter.module: blocks.0.act"}
    assert re.fullmatch("y", model.graph.outputs[0].name)
