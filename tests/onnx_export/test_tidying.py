"""What is tidied away changes no bit of what the model computes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "graph"))

from networks import folded, trained

from exporter.config import OnnxConfig
from exporter.onnx_export import export_onnx
from exporter.onnx_export.reshapes import merge_reshapes_
from exporter.onnx_export.tidying import tidy_
from exporter.onnx_export.transposes import merge_transposes_


def types(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def chain(*targets: list[int] | None, allowzero: int = 0) -> onnx.ModelProto:
    """x [batch, 3, 4] -> a reshape for each target, computed from the shape of x where it is None -> negation."""
    nodes, constants, value = [], [], "x"
    for index, target in enumerate(targets):
        if target is None:
            nodes.append(helper.make_node("Shape", ["x"], [f"shape{index}"]))
        else:
            constants.append(helper.make_tensor(f"shape{index}", TensorProto.INT64, [len(target)], target))
        nodes.append(helper.make_node("Reshape", [value, f"shape{index}"], [f"y{index}"], allowzero=allowzero))
        value = f"y{index}"
    nodes.append(helper.make_node("Neg", [value], ["out"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "main", [x], [out], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("targets", "left"),
    [
        ([[-1, 4], [-1, 3, 4]], 0),
        ([[-1, 3, 4]], 0),
        ([[-1, 4], [-1, 3, 2, 2]], 1),
        ([[-1, 4], [-1, 2], [-1, 12]], 1),
        ([[-1, 4, 3]], 1),
        ([[3, -1, 4]], 1),
        ([[-1, 4], [0, 2, 2]], 2),
        ([[-1, 4], None], 2),
    ],
    ids=["there and back", "same shape", "two in a row", "three in a row", "other order", "other axis", "zero is the axis read", "computed"],
)
def test_reshapes_in_a_row(targets, left):
    """The last one alone stays, none where the shape is the one before; a target that is computed or refers to its input is left alone."""
    message = chain(*targets)
    model = ir.from_proto(message)
    merge_reshapes_(model)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    tidied = ir.to_proto(model)
    assert [node.op_type for node in tidied.graph.node].count("Reshape") == left
    for batch in (1, 3, 6):
        x = np.random.default_rng(0).normal(size=(batch, 3, 4)).astype(np.float32)
        np.testing.assert_array_equal(run(tidied, x), run(message, x), strict=True)


def test_an_output_keeps_its_reshape():
    """A reshape that makes an output of the model stays, also where it keeps the shape: the output has its name."""
    message = chain([-1, 3, 4])
    message.graph.output[0].name = "y0"
    del message.graph.node[-1]
    model = ir.from_proto(message)
    merge_reshapes_(model)
    assert [node.op_type for node in model.graph] == ["Reshape"]


def model_of(*nodes: onnx.NodeProto, out: list[int | str], **constants: list[int] | float) -> onnx.ModelProto:
    """Return a model x [batch, 3, 4, 5] -> nodes -> out, with whole numbers and one floating number as constants."""
    tensors = [
        helper.make_tensor(name, TensorProto.INT64, [len(given)], given)
        if isinstance(given, list)
        else helper.make_tensor(name, TensorProto.FLOAT, [1], [given])
        for name, given in constants.items()
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 5])
    y = helper.make_tensor_value_info("out", TensorProto.FLOAT, out)
    return helper.make_model(helper.make_graph(list(nodes), "main", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def turned(source: str, output: str, *order: int) -> onnx.NodeProto:
    return helper.make_node("Transpose", [source], [output], perm=order)


def made(op_type: str, sources: str, output: str, **attributes: int) -> onnx.NodeProto:
    return helper.make_node(op_type, sources.split(), [output], **attributes)


NEG = made("Neg", "last", "out")
KEYS = (made("Reshape", "x joined", "a"), turned("a", "b", 0, 2, 1), made("Reshape", "b apart", "last"), NEG)
SHAPE = ["batch", 3, 4, 5]
ROWS = {
    "transpositions that undo each other": (model_of(turned("x", "a", 0, 2, 1, 3), turned("a", "last", 0, 2, 1, 3), NEG, out=SHAPE), []),
    "three transpositions": (
        model_of(turned("x", "a", 0, 2, 1, 3), turned("a", "b", 3, 0, 1, 2), turned("b", "last", 1, 0, 2, 3), NEG, out=["batch", 5, 4, 3]),
        ["Transpose"],
    ),
    "a transposition of nothing": (model_of(turned("x", "last", 0, 1, 2, 3), NEG, out=SHAPE), []),
    "without an order the axes are reversed": (
        model_of(helper.make_node("Transpose", ["x"], ["a"]), helper.make_node("Transpose", ["a"], ["last"]), NEG, out=SHAPE),
        [],
    ),
    "one that is read between": (
        model_of(
            turned("x", "a", 0, 2, 1, 3),
            turned("a", "b", 0, 2, 1, 3),
            made("Neg", "a", "c"),
            turned("c", "d", 0, 2, 1, 3),
            made("Add", "b d", "out"),
            out=SHAPE,
        ),
        ["Transpose", "Transpose"],
    ),
    "an output keeps its transposition": (model_of(turned("x", "a", 0, 2, 1, 3), turned("a", "out", 0, 2, 1, 3), out=SHAPE), ["Transpose"]),
    "keys of an attention": (model_of(*KEYS, joined=[-1, 4, 5], apart=[-1, 3, 5, 4], out=["batch", 3, 5, 4]), ["Transpose"]),
    "keys that are taken apart otherwise": (
        model_of(*KEYS, joined=[-1, 4, 5], apart=[-1, 3, 4, 5], out=SHAPE),
        ["Reshape", "Reshape", "Transpose"],
    ),
    "other axes joined": (model_of(*KEYS, joined=[-1, 12, 5], apart=[-1, 5, 3, 4], out=["batch", 5, 3, 4]), ["Reshape", "Reshape", "Transpose"]),
    "an axis put in and made flat": (
        model_of(made("Unsqueeze", "x one", "a"), made("Reshape", "a flat", "last"), NEG, one=[1], flat=[-1, 12, 5], out=["batch", 12, 5]),
        ["Reshape"],
    ),
    "an axis put in and taken out": (
        model_of(made("Unsqueeze", "x one", "a"), made("Squeeze", "a one", "last"), NEG, one=[1], out=SHAPE),
        [],
    ),
    "two axes put in": (
        model_of(made("Unsqueeze", "x one", "a"), made("Unsqueeze", "a one", "last"), NEG, one=[1], out=["batch", 1, 1, 3, 4, 5]),
        ["Reshape"],
    ),
    "made flat and an axis put in": (
        model_of(made("Flatten", "x", "a"), made("Unsqueeze", "a one", "last"), NEG, one=[1], out=["batch", 1, 60]),
        ["Reshape"],
    ),
    "an axis put in behind a view and a transposition": (
        model_of(
            made("Reshape", "x joined", "a"),
            turned("a", "b", 0, 2, 1),
            made("Unsqueeze", "b two", "last"),
            NEG,
            joined=[-1, 12, 5],
            two=[-2, 0],
            out=[1, "batch", 5, 1, 12],
        ),
        ["Reshape", "Transpose"],
    ),
    "an axis put in behind a transposition": (
        model_of(turned("x", "a", 0, 2, 1, 3), made("Unsqueeze", "a one", "last"), NEG, one=[1], out=["batch", 1, 4, 3, 5]),
        ["Transpose", "Unsqueeze"],
    ),
    "one axis put in": (model_of(made("Unsqueeze", "x one", "last"), NEG, one=[1], out=["batch", 1, 3, 4, 5]), ["Unsqueeze"]),
    "a cast to the own dtype": (
        model_of(made("Neg", "x", "n"), made("CastLike", "half n", "a"), made("Mul", "n a", "out"), half=0.5, out=SHAPE),
        ["Mul"],
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_views_transpositions_and_casts(name):
    """What is left, and not a bit changes, whatever the batch."""
    message, left = ROWS[name]
    model = ir.from_proto(message)
    tidy_(model, inputs=["x"], outputs=["out"])
    tidied = ir.to_proto(model)
    onnx.checker.check_model(tidied, full_check=True)
    assert sorted(node.op_type for node in tidied.graph.node if node.op_type not in {"Neg", "Add"}) == left
    for batch in (1, 3):
        x = np.random.default_rng(0).normal(size=(batch, 3, 4, 5)).astype(np.float32)
        np.testing.assert_array_equal(run(tidied, x), run(message, x), strict=True)


def test_a_cast_to_another_dtype_stays():
    """What a cast changes is not left out."""
    message = model_of(made("CastLike", "x count", "a"), made("CastLike", "a x", "out"), count=[1], out=SHAPE)
    model = ir.from_proto(message)
    tidy_(model, inputs=["x"], outputs=["out"])
    assert [node.op_type[:4] for node in model.graph] == ["Cast", "Cast"]
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(run(ir.to_proto(model), x), np.trunc(x))


def test_nothing_is_left_to_do():
    """A second pass finds nothing."""
    model = ir.from_proto(ROWS["three transpositions"][0])
    assert merge_transposes_(model)
    assert not merge_transposes_(model)


class Attention(nn.Module):
    """Tokens -> product -> BatchNorm over all of them -> scores with a bias for each pair of places, as LeViT has it."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.linear, self.bn = nn.Linear(8, 8, bias=False), trained(nn.BatchNorm1d(8))
        self.biases = nn.Parameter(torch.randn(2, 100, generator=generator))
        self.register_buffer("places", torch.randint(0, 100, (100, 100), generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        x = self.bn(x.flatten(0, 1)).reshape_as(x)
        heads = x.view(x.shape[0], 100, 2, 4).transpose(1, 2)
        return (heads @ heads.transpose(2, 3) + self.biases[:, self.places]).softmax(-1)


@pytest.mark.parametrize("dynamic_batch", [True, False])
def test_attention_with_gathered_biases(tmp_path, dynamic_batch):
    """The biases are in the file as they are added, and the reshapes around the folded BatchNorm are gone."""
    network = Attention().eval()
    model = export_onnx(folded(network, (2, 100, 8)), tmp_path / "net.onnx", OnnxConfig(dynamic_batch=dynamic_batch), key="k")
    left = types(model.path)
    assert not {"Expand", "Gather", "GatherND", "Max", "Shape", "Unsqueeze", "BatchNormalization"} & set(left)
    assert left.count("Reshape") == 1
    biases = network.biases[:, network.places].detach().numpy()
    stored = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(model.path).graph.initializer]
    assert any(np.array_equal(array, biases) for array in stored)
    x = torch.randn((1, 100, 8), generator=torch.Generator().manual_seed(5))
    session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.inference_mode():
        np.testing.assert_allclose(got, network(x), rtol=1e-4, atol=1e-6)


def test_a_large_result_of_a_gather_is_not_stored(tmp_path):
    """A gather that would make the file much larger stays a gather."""

    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.ones(4, 600))
            self.register_buffer("places", torch.arange(600) % 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table[self.places]

    model = export_onnx(folded(Spread(), (2, 600, 600)), tmp_path / "net.onnx", OnnxConfig(), key="k")
    assert {"Gather", "GatherND"} & set(types(model.path))
    assert model.path.stat().st_size < 100_000
