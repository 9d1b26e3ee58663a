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
