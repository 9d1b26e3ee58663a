"""A model in half precision keeps float32 inputs and outputs, has its islands in float32, and casts at their borders only."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import onnxruntime
import pytest

from exporter.errors import ConfigError
from exporter.onnx_export.precision import halve_, precision_shares, shares_text

NETWORK = """
<ir_version: 10, opset_import: ["": 22]>
net (float[N,4,6,6] x) => (float[N,5] y, float[N,4,6,6] features)
<float[4,4,3,3] w, float[4] b, float[4] g, float[4] h, float[5,4] v,
 int64[3] s = {0, 4, 36}, float eps = {1e-6}, float[1] one = {1.0}, int64[1] axes = {2}>
{
    features = Conv<pads = [1, 1, 1, 1]>(x, w, b)
    r = Relu(features)
    f = Reshape(r, s)
    t = Transpose<perm = [0, 2, 1]>(f)
    n = LayerNormalization(t, g, h)
    p = Softmax(n)
    q = Transpose<perm = [0, 2, 1]>(p)
    m = ReduceMean<keepdims = 0>(q, axes)
    e = Add(m, eps)
    d = Div(one, e)
    y = Gemm<transB = 1>(d, v)
}
"""


def network(seed: int = 0) -> onnx_ir.Model:
    """Return the network with random weights and the dtypes of all values."""
    rng = np.random.default_rng(seed)
    model = onnx.parser.parse_model(NETWORK)
    kept = [tensor for tensor in model.graph.initializer if tensor.name in {"s", "eps", "one", "axes"}]
    shapes = {"w": (4, 4, 3, 3), "b": (4,), "g": (4,), "h": (4,), "v": (5, 4)}
    made = [onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in shapes.items()]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *made])
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    lower = onnx_ir.from_proto(model)
    lower.graph[0].metadata_props["exporter.module"] = "stem.conv"
    lower.graph[-1].metadata_props["exporter.module"] = "head.fc"
    return lower


def checked(model: onnx_ir.Model) -> onnx.ModelProto:
    """Return the model, which has passed ONNX's full checker and strict shape inference."""
    proto = onnx_ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    return proto


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})


def casts(model: onnx.ModelProto) -> list[tuple[str, str]]:
    return [(node.input[0], node.output[0]) for node in model.graph.node if node.op_type == "Cast"]


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_inputs_and_outputs_stay_float32(precision):
    """Names, order and dtypes of inputs and outputs are those of the float32 model, and the types are valid throughout."""
    model = network()
    halve_(model, precision)
    proto = checked(model)
    tensors = [*proto.graph.input, *proto.graph.output]
    assert [(value.name, value.type.tensor_type.elem_type) for value in tensors] == [("x", 1), ("y", 1), ("features", 1)]


def test_islands_and_their_reasons():
    """Normalisation, softmax and reductions stay, so does what has a constant that would lose its digits, and each says why."""
    model = network()
    reasons = halve_(model, "float16")
    assert reasons == {
        "LayerNormalization_4": "normalisation",
        "Softmax_5": "softmax",
        "Transpose_6": "between islands",
        "ReduceMean_7": "reduction",
        "Add_8": "constant",
    }
    assert shares_text(precision_shares(model)) == "float16 55 %, float32 45 %"
    assert "Add_8" not in halve_(network(), "bfloat16")


def test_casts_stand_at_borders_only():
    """One cast per value and border: at the input, around each island, and at the outputs; none follows another."""
    model = network()
    halve_(model, "float16")
    found = casts(checked(model))
    assert found == [
        ("x", "x/float16"),
        ("features/float16", "features"),
        ("t", "t/float"),
        ("e", "e/float16"),
        ("y/float16", "y"),
    ]
    outputs = {output for _, output in found}
    assert not [name for name, _ in found if name in outputs]


def test_weights_are_rounded_once():
    """A weight in half precision is the nearest one to the float32 weight, bit for bit; no float32 copy of it is left."""
    wide, model = network(), network()
    halve_(model, "float16")
    got = model.graph.initializers["w/float16"].const_value.numpy()
    np.testing.assert_array_equal(got, wide.graph.initializers["w"].const_value.numpy().astype(np.float16))
    assert not model.graph.initializers["w"].uses()


def test_the_numbers_are_those_of_half_precision():
    """In ONNX Runtime the outputs agree with float32 to the digits of float16, and are not float32's own."""
    wide, half = network(), network()
    halve_(half, "float16")
    x = np.random.default_rng(1).standard_normal((3, 4, 6, 6)).astype(np.float32)
    for want, got in zip(run(checked(wide), x), run(checked(half), x), strict=True):
        distance = np.linalg.norm(got - want) / np.linalg.norm(want)
        assert 1e-6 < distance < 5e-3


@pytest.mark.parametrize(("pattern", "node"), [("head.*", "Gemm_10"), ("stem.conv", "Conv_0"), ("Div_*", "Div_9")])
def test_what_the_user_names_stays_float32(pattern, node):
    """A pattern matches the name of a module or of a node."""
    model = network()
    assert halve_(model, "float16", [pattern])[node] == "asked for"
    checked(model)
    by_name = {made.name: made for made in model.graph}
    assert by_name[node].outputs[0].dtype == onnx_ir.DataType.FLOAT


def test_a_pattern_that_matches_nothing_is_an_error():
    """The near misses are named."""
    with pytest.raises(ConfigError, match=r"head\.fcc") as caught:
        halve_(network(), "float16", ["head.fcc"])
    assert (caught.value.code, caught.value.help) == ("E456", "did you mean head.fc?")


def test_bfloat16_needs_opset_22():
    """Before opset 22 a convolution in bfloat16 is no valid ONNX."""
    model = network()
    model.opset_imports[""] = 20
    with pytest.raises(ConfigError) as caught:
        halve_(model, "bfloat16")
    assert caught.value.code == "E455"


def test_a_weight_beyond_float16_stays_float32():
    """A weight that would become infinite makes its node an island; in bfloat16 it fits."""
    model = network()
    model.graph.initializers["v"].const_value = onnx_ir.tensor(np.full((5, 4), 70000.0, np.float32))
    assert halve_(model, "float16")["Gemm_10"] == "constant"
    checked(model)


def test_a_branch_reads_float32():
    """A subgraph stays as it is; what it reads from outside is cast back for it."""
    text = """<ir_version: 10, opset_import: ["": 22]> g (float[N,3] x, bool p) => (float[N,3] y)
    { a = Relu(x)
      b = If (p) <then_branch = t () => (float[N,3] c) { c = Neg(a) }, else_branch = e () => (float[N,3] d) { d = Abs(a) }>  y = Relu(b) }"""
    model = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    assert list(halve_(model, "float16").values()) == ["subgraph"]
    checked(model)
