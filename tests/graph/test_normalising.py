"""``[fold] input``: the network takes raw pixels, and nothing is left of the normalisation."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import Sequence, trained
from torch import Tensor, nn

import exporter
from exporter.artifacts import Graph, Provenance
from exporter.config import FoldConfig, InputConfig
from exporter.errors import ConfigError, FoldError
from exporter.factories import normalise_inputs_
from exporter.graph import fold, trace

TEXT = "mean=0.485,0.456,0.406,std=0.229,0.224,0.225,scale=1/255"
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
PIXELS = (2, 3, 12, 10)


def graph_of(network: nn.Module, text: str = TEXT, *, shape: tuple[int, ...] = PIXELS, dynamic: bool = False, level: str = "default") -> Graph:
    axes = {"0": "batch", "2": "height", "3": "width"} if dynamic else {}
    traced = trace(network.eval(), (InputConfig(name="image", shape=shape, dynamic=axes),))
    return fold(traced, FoldConfig(input=(text,), level=level), provenance=Provenance("graph"))


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(3)).float()


def normalised(x: Tensor) -> Tensor:
    mean, std = (torch.from_numpy(part).reshape(1, 3, 1, 1) for part in (MEAN, STD))
    return (x.double() / 255 - mean) / std


def kinds(graph: Graph) -> set[str]:
    return {str(node.target) for node in graph.folded_program.graph.nodes if node.op == "call_function"}


NETWORKS = {
    "no padding": lambda: Sequence(conv=nn.Conv2d(3, 4, 3, bias=False), bn=trained(nn.BatchNorm2d(4)), act=nn.ReLU()),
    "padding": lambda: Sequence(conv=nn.Conv2d(3, 4, 3, padding=1), bn=trained(nn.BatchNorm2d(4)), act=nn.ReLU()),
    "stem of a ResNet": lambda: Sequence(conv=nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False), bn=trained(nn.BatchNorm2d(8)), act=nn.ReLU()),
    "patches": lambda: Sequence(conv=nn.Conv2d(3, 8, 2, stride=2), act=nn.GELU()),
    "two readers": lambda: TwoReaders(1),
}


class TwoReaders(nn.Module):
    def __init__(self, padding: int) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 3, padding=padding), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.one(x)) + torch.relu(self.other(x))


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed sizes", "dynamic sizes"])
@pytest.mark.parametrize("level", ["conservative", "default"])
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_raw_pixels_give_what_normalised_ones_gave(make, level, dynamic):
    """The folded network computes on raw pixels, border included, what the network computes in float64 on normalised ones."""
    torch.manual_seed(0)
    network = make().eval()
    graph = graph_of(network, dynamic=dynamic, level=level)
    x = pixels(3, 3, 20, 14) if dynamic else pixels(3, 3, 12, 10)
    with torch.no_grad():
        expected = copy.deepcopy(network).double()(normalised(x))
        got = graph.folded_program.module()(x).double()
        unfolded = graph.unfused.module()(x).double()
    assert torch.linalg.norm(got - expected) <= 1e-6 * torch.linalg.norm(expected)
    assert torch.linalg.norm(unfolded - expected) <= 1e-5 * torch.linalg.norm(expected)
    assert "aten.mul.Tensor" not in kinds(graph)
    assert not any("normalised" in name for name in (*graph.folded_program.state_dict, *graph.folded_program.constants))


def test_the_fold_takes_exact_numbers():
    """``scale / std`` is rounded with the weight, once, and not before."""
    network = Sequence(conv=nn.Conv2d(3, 4, 3, bias=False))
    graph = graph_of(network)
    exact = network.conv.weight.detach().double().numpy() * (1 / 255 / STD).reshape(1, 3, 1, 1)
    assert np.array_equal(graph.folded_program.state_dict["conv.weight"].detach().numpy(), exact.astype(np.float32))


def test_a_single_channel_and_a_single_number():
    """One number counts for all channels, also where there is one."""
    for channels in (1, 3):
        network = Sequence(conv=nn.Conv2d(channels, 4, 3, padding=1))
        graph = graph_of(network, "mean=0.5,std=0.25", shape=(2, channels, 8, 8))
        x = torch.rand(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.allclose(graph.folded_program.module()(x), network((x - 0.5) / 0.25), atol=1e-5)
        assert graph.provenance.lineage["input_normalised_inside"] == "mean=0.5,std=0.25"


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(5, 4)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        return self.conv(image).mean((2, 3)) + self.linear(vector)


def test_each_input_by_its_name():
    """With several inputs the text names one, and the others are as they were."""
    network = TwoInputs().eval()
    folded = exporter.fold(network, (torch.zeros(2, 3, 8, 8), torch.zeros(2, 5)), config=FoldConfig(input=("image:mean=10,std=2", "vector:scale=3")))
    image, vector = pixels(2, 3, 8, 8), torch.rand(2, 5)
    with torch.no_grad():
        assert torch.allclose(folded(image, vector), network((image - 10) / 2, vector * 3), rtol=1e-4, atol=1e-4)


def test_the_reference_normalises_in_its_own_precision():
    """A module that takes raw pixels normalises them in float64 where it runs in float64, whatever its inputs are called."""
    for name in ("", "x:"):
        network = Sequence(conv=nn.Conv2d(3, 4, 3)).eval().double()
        x = pixels(2, 3, 8, 8).double()
        with torch.no_grad():
            expected = network(normalised(x))
            normalise_inputs_(network, (name + TEXT,))
            assert torch.allclose(network(x), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Sequence(act=nn.ReLU(), conv=nn.Conv2d(3, 4, 3)), "relu"),
        (Sequence(drop=nn.Identity()), "output"),
    ],
    ids=["a non-linearity first", "no product at all"],
)
def test_what_cannot_be_folded_is_an_error(network, reason):
    """There is no network that takes raw pixels and normalises them nowhere: the reason is named, and nothing is made."""
    with pytest.raises(FoldError, match="E365") as caught:
        graph_of(network)
    assert reason in caught.value.facts["because"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("mean=1,2", "E367"),
        ("mask:mean=1", "E367"),
        ("mean=one", "E366"),
        ("0.5", "E366"),
        ("mean=0.5,mean=0.5", "E366"),
        ("std=0", "E366"),
        ("mean=1,2,3,std=1,2", "E366"),
        ("scale=1/0", "E366"),
        (":mean=1", "E366"),
        ("", "E366"),
    ],
)
def test_text_that_is_no_normalisation_is_refused(text, code):
    """A number that is none, a key that stands twice, a std of zero, an unknown input, lists that do not fit."""
    with pytest.raises(ConfigError, match=code):
        graph_of(Sequence(conv=nn.Conv2d(3, 4, 3)), text)


def test_a_plan_folds_the_same_normalisation_into_new_weights():
    """The numbers of the normalisation stand in the plan, exactly."""
    config, sample = FoldConfig(input=(TEXT,)), torch.zeros(PIXELS)
    plan = exporter.fold(NETWORKS["stem of a ResNet"](), sample, config=config).plan
    torch.manual_seed(9)
    other = NETWORKS["stem of a ResNet"]()
    got = exporter.apply_plan(plan, {name: tensor.detach().numpy() for name, tensor in other.state_dict().items()})
    expected = {name: tensor.detach().numpy() for name, tensor in exporter.fold(other, sample, config=config).state_dict().items()}
    assert sorted(got) == sorted(expected)
    assert all(got[name].tobytes() == array.tobytes() for name, array in expected.items())


def test_an_onnx_file_is_not_normalised_in_passing():
    """Where the setting has no effect it is refused: the file would take other inputs than one believes."""
    import onnx

    from exporter.graph import fold_onnx

    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 20]> small (float[2,3] x) => (float[2,3] y) { y = Relu(x) }')
    with pytest.raises(FoldError, match="E365"):
        fold_onnx(model, FoldConfig(input=("mean=1",)), base=Path())
