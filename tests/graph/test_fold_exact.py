"""Every fold that is made is exact: in float64 nothing but rounding of float64 separates folded from unfolded."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Sequence, error_in_float64, folded, trained
from torch import Tensor, nn

from exporter.artifacts import Provenance
from exporter.config import FoldConfig, InputConfig
from exporter.graph import fold, trace
from exporter.graph.algebra import affine_from_batch_norm, rounded_once, scaled_outputs, shifted_bias

BOUND = 1e-10
CONVOLUTIONS = {1: (nn.Conv1d, nn.BatchNorm1d), 2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}


def test_input_with_a_name_of_pythons():
    """A network whose `forward` calls its input `input`, as that of torch's Sequential does, is folded; the input keeps its name."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), trained(nn.BatchNorm2d(4))).eval()
    traced = trace(network, (InputConfig(name="image", shape=(2, 3, 8, 8)),))
    graph = fold(traced, FoldConfig(), provenance=Provenance("graph"))
    assert [fold.batch_norm for fold in graph.folded] == ["1"]
    assert graph.folded_program.graph_signature.user_inputs == traced.program.graph_signature.user_inputs == ("input",)
    assert error_in_float64(graph, (2, 3, 8, 8)) <= BOUND


@settings(max_examples=25)
@given(
    spatial=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    multiple=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "same", "reflect", "circular"]),
    bias=st.booleans(),
    affine=st.booleans(),
    gamma=st.sampled_from(["mixed", "zero", "negative"]),
    var=st.sampled_from(["usual", "tiny"]),
    seed=st.integers(0, 99),
)
def test_convolution_of_any_shape(spatial, groups, multiple, kernel, stride, dilation, padding, bias, affine, gamma, var, seed):
    """A BatchNorm after any convolution is folded, and the network stays the same function."""
    convolution, normalisation = CONVOLUTIONS[spatial]
    mode = padding if padding in {"reflect", "circular"} else "zeros"
    size = 1 if mode != "zeros" else padding
    kernel = kernel | 1 if size == "same" else kernel  # torch warns of a copy with even kernels
    conv = convolution(
        4, 4 * multiple, kernel, stride=1 if size == "same" else stride, padding=size, dilation=dilation, groups=groups, bias=bias, padding_mode=mode
    )
    network = Sequence(conv=conv, bn=trained(normalisation(4 * multiple, affine=affine), seed=seed, gamma=gamma, var=var), relu=nn.ReLU())
    shape = (2, 4, *[7] * spatial)
    graph = folded(network, shape)
    assert [fold.batch_norm for fold in graph.folded] == ["bn"]
    assert graph.folded[0].pattern == f"conv{spatial}d+bn"
    assert error_in_float64(graph, shape) <= BOUND


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_linear(bias):
    """A BatchNorm1d after a Linear on (N, C) is folded."""
    graph = folded(Sequence(linear=nn.Linear(6, 5, bias=bias), bn=trained(nn.BatchNorm1d(5))), (2, 6))
    assert [(fold.batch_norm, fold.producer, fold.pattern) for fold in graph.folded] == [("bn", "linear", "linear+bn")]
    assert error_in_float64(graph, (2, 6)) <= BOUND


def test_addmm_scales_the_columns_of_its_weight():
    """``addmm(b, x, W)`` keeps output channels in the second axis of ``W``; it is folded along that one."""

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.shift = nn.Parameter(torch.randn(5, 5)), nn.Parameter(torch.randn(5))
            self.bn = trained(nn.BatchNorm1d(5))

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(torch.addmm(self.shift, x, self.weight))

    graph = folded(Product(), (2, 5))
    assert len(graph.folded) == 1
    assert error_in_float64(graph, (2, 5)) <= BOUND


def test_batch_norm_behind_a_folded_batch_norm_is_folded_as_well():
    """conv -> bn -> bn -> bn: all three end up in the convolution, none is erased; the weight is rounded once."""
    network = Sequence(
        conv=nn.Conv2d(3, 4, 3, bias=False),
        a=trained(nn.BatchNorm2d(4), seed=1),
        b=trained(nn.BatchNorm2d(4), seed=2),
        c=trained(nn.BatchNorm2d(4), seed=3),
    )
    graph = folded(network)
    assert [(fold.batch_norm, fold.producer) for fold in graph.folded] == [("a", "conv"), ("b", "conv"), ("c", "conv")]
    assert error_in_float64(graph) <= BOUND
    weight, bias = network.conv.weight.double().detach().numpy(), None
    for norm in (network.a, network.b, network.c):
        numbers = [t.double().detach().numpy() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]
        s, t = affine_from_batch_norm(*numbers, norm.eps)
        weight, bias = scaled_outputs(weight, s), shifted_bias(bias, s, t)
    assert torch.equal(graph.folded_program.state_dict["conv.weight"].detach(), torch.from_numpy(rounded_once(weight, "float32")))


def test_functional_batch_norm_is_named_by_its_statistics():
    """``F.batch_norm(training=False)`` is folded like a module, under the name of the module that owns the statistics."""

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), trained(nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> Tensor:
            norm = self.norm
            return nn.functional.batch_norm(self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.1, norm.eps)

    graph = folded(Functional())
    assert [fold.batch_norm for fold in graph.folded] == ["norm"]
    assert error_in_float64(graph) <= BOUND


class NormAct(nn.BatchNorm2d):
    """A BatchNorm that carries its activation, as timm's BatchNormAct2d does."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


class ScaledConv(nn.Conv2d):
    """A convolution subclass that does more than a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


class WiderConv(nn.Conv2d):
    """A convolution subclass that pads by itself, as SAME-padding ones do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


def test_activation_inside_a_batch_norm_subclass_survives():
    """The BatchNorm of a subclass that applies an activation is folded, its activation stays."""
    graph = folded(Sequence(conv=nn.Conv2d(3, 4, 3), bn=trained(NormAct(4)), last=nn.Conv2d(4, 2, 1)))
    assert len(graph.folded) == 1
    assert error_in_float64(graph) <= BOUND


def test_subclass_of_conv_that_only_pads_is_folded():
    """What counts is the call in the graph, not the class of the module."""
    graph = folded(Sequence(conv=WiderConv(3, 4, 3), bn=trained(nn.BatchNorm2d(4))))
    assert len(graph.folded) == 1
    assert error_in_float64(graph) <= BOUND


def test_shared_batch_norm_after_two_convolutions_is_folded_into_each():
    """One BatchNorm module called behind two convolutions leaves both; the calls are told apart by name."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.bn = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), trained(nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.b(self.bn(self.a(x))))

    graph = folded(Shared())
    assert [fold.batch_norm for fold in graph.folded] == ["bn", "bn (call 2)"]
    assert error_in_float64(graph) <= BOUND


def test_order_of_registration_does_not_matter():
    """Folds follow the data, not the order in which modules were registered."""

    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn2, self.conv2 = trained(nn.BatchNorm2d(4), seed=5), nn.Conv2d(4, 4, 1)
            self.bn1, self.conv1 = trained(nn.BatchNorm2d(4), seed=6), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))

    graph = folded(Reversed())
    assert [(fold.batch_norm, fold.producer) for fold in graph.folded] == [("bn1", "conv1"), ("bn2", "conv2")]
    assert error_in_float64(graph) <= BOUND


def test_in_place_activation_behind_a_batch_norm():
    """An in-place ReLU that wrote to the BatchNorm's output writes to the convolution's output afterwards."""
    graph = folded(Sequence(conv=nn.Conv2d(3, 4, 3), bn=trained(nn.BatchNorm2d(4)), relu=nn.ReLU(inplace=True), last=nn.Conv2d(4, 2, 1)))
    assert len(graph.folded) == 1
    assert error_in_float64(graph) <= BOUND


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_folded_weights_are_the_correctly_rounded_float64_fold(dtype):
    """Weight and bias equal, bit for bit, the float64 fold rounded once to the weight's dtype."""
    network = Sequence(conv=nn.Conv2d(3, 16, 3), bn=trained(nn.BatchNorm2d(16))).to(getattr(torch, dtype))
    graph = folded(network, dtype=dtype)
    norm = network.bn
    numbers = [t.double().detach().numpy() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]
    s, t = affine_from_batch_norm(*numbers, norm.eps)
    exact = scaled_outputs(network.conv.weight.double().detach().numpy(), s), shifted_bias(network.conv.bias.double().detach().numpy(), s, t)
    for name, want in zip(("conv.weight", "conv.bias"), exact, strict=True):
        got = graph.folded_program.state_dict[name].detach()
        assert str(got.dtype) == f"torch.{dtype}"
        assert (got.double().numpy() == rounded_once(want, dtype).astype("float64")).all()


def test_unfolded_program_is_untouched():
    """Folding changes a copy: the traced program keeps its calls, its tensors and its outputs."""
    network = Sequence(conv=nn.Conv2d(3, 4, 3, bias=False), bn=trained(nn.BatchNorm2d(4)))
    traced = trace(network.eval(), (InputConfig(name="x", shape=(2, 3, 8, 8)),))
    code = traced.program.graph_module.code
    before = {name: tensor.clone() for name, tensor in traced.program.state_dict.items()}
    graph = fold(traced, FoldConfig(), provenance=Provenance("graph"))
    assert graph.unfused is traced.program
    assert traced.program.graph_module.code == code
    assert all(torch.equal(before[name], tensor) for name, tensor in traced.program.state_dict.items())
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(graph.unfused.module()(x), network(x))


def test_nothing_of_a_folded_batch_norm_remains():
    """Its parameters, statistics and counter leave the program; the bias that it left behind has a module's usual name."""
    graph = folded(Sequence(conv=nn.Conv2d(3, 4, 3, bias=False), bn=trained(nn.BatchNorm2d(4))))
    assert set(graph.folded_program.state_dict) == {"conv.weight", "conv.bias"}
    assert [spec.target for spec in graph.folded_program.graph_signature.input_specs] == ["conv.weight", "conv.bias", None]
    assert (graph.num_batch_norms, graph.ops_before, graph.ops_after) == (1, 2, 1)


def test_bias_created_beside_a_tensor_of_the_same_name():
    """A convolution without bias in a module that already has a tensor called ``bias`` gets a bias under another name."""

    class Own(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 4, 3, bias=False)
            del self.bias
            self.register_buffer("bias", torch.full((1,), 3.0))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.weight)

    graph = folded(Sequence(conv=Own(), bn=trained(nn.BatchNorm2d(4))))
    assert graph.folded_program.state_dict["conv.bias"].shape == (1,)
    assert graph.folded_program.state_dict["conv.folded_bias"].shape == (4,)
    assert error_in_float64(graph) <= BOUND


def test_digits_network_folds_completely(digits):
    """All 13 BatchNorms of the fixture go: ``stages.norm``, behind a ReLU, into the linear layer behind the pooling."""
    from exporter.config import ModelConfig
    from exporter.factories import build_model

    network = build_model(ModelConfig(factory="model.py:build"), base=digits)
    graph = folded(network, (2, 1, 8, 8))
    assert (len(graph.folded), graph.num_batch_norms, graph.refusals) == (13, 13, ())
    assert [(fold.producer, fold.pattern) for fold in graph.folded if fold.batch_norm == "stages.norm"] == [
        ("hidden", "bn+adaptive_avg_pool2d+flatten+linear")
    ]
    assert error_in_float64(graph, (2, 1, 8, 8)) <= BOUND
    assert graph.provenance.lineage == {"batch_norms": "13", "folded": "13", "refused": "0"}


def test_the_float64_measure_sees_a_wrong_fold():
    """One folded weight off by one part in a million is far above the bound: the measure can fail."""
    from exporter.graph.aten.reading import ProgramConstants, abstract_graph
    from exporter.graph.aten.surgery import folded_program
    from exporter.graph.planning import make_plan
    from exporter.graph.precision import program_in_float64

    graph = folded(Sequence(conv=nn.Conv2d(3, 4, 3), bn=trained(nn.BatchNorm2d(4))))
    unfused = program_in_float64(graph.unfused)
    plan = make_plan(abstract_graph(unfused), ProgramConstants(unfused), FoldConfig())
    weight = plan.numbers[0].weight.copy()
    weight[1] *= 1 + 1e-6
    wrong = folded_program(unfused, dataclasses.replace(plan, numbers=(dataclasses.replace(plan.numbers[0], given=weight),)))
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        reference, candidate = unfused.module()(x), wrong.module()(x)
    assert float((candidate - reference).abs().max() / reference.abs().max()) > 1e-9
