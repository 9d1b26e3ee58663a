"""A plan applied to new weights gives bit for bit what folding the network with them anew gives, or refuses them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes  # noqa: F401 - makes bfloat16 a dtype of NumPy
import numpy as np
import pytest
import torch
from networks import Sequence, trained
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import exporter
from exporter.errors import ArtifactError, FoldError, LayoutError
from exporter.graph.replay import FoldPlan, read_plan, write_plan

SHAPE = (2, 3, 8, 8)


class Residual(nn.Module):
    """A block as of a ResNet, with a strided shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(8)
        self.down, self.bn3 = nn.Conv2d(3, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return self.head(torch.relu(y + self.bn3(self.down(x))).mean((2, 3)))


class Branches(nn.Module):
    """A block as of RepVGG: a wide, a narrow and an identity branch."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.bn1 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.narrow, self.bn2 = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.identity = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn1(self.wide(x)) + self.bn2(self.narrow(x)) + self.identity(x))


class Joined(nn.Module):
    """Two convolutions joined before one BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.bn = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(torch.cat([self.left(x), self.right(x)], 1))


class Frozen(nn.Module):
    """A BatchNorm whose factors are computed from its buffers, as torchvision's frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = (t.reshape(1, -1, 1, 1) for t in (self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var))
        scale = weight * (var + 1e-5).rsqrt()
        return self.conv(x) * scale + (bias - mean * scale)


class Constant(nn.Module):
    """A product and a sum with constants that are no part of the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("scale", torch.linspace(0.5, 2.0, 3).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", torch.linspace(-1.0, 1.0, 3).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x * self.scale + self.shift))


class Tied(nn.Module):
    """One convolution behind two BatchNorms: one of the calls gets weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv(torch.relu(self.bn1(self.conv(x)))))


def ahead() -> nn.Module:
    return Sequence(act=nn.ReLU(), bn=nn.BatchNorm2d(3), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(3, 5))


def transposed() -> nn.Module:
    return Sequence(conv=nn.ConvTranspose2d(3, 4, 3, groups=1, bias=False), bn=nn.BatchNorm2d(4), bn2=nn.BatchNorm2d(4))


def norm_in_norm() -> nn.Module:
    return Sequence(before=nn.Sigmoid(), bn=nn.BatchNorm2d(3, affine=False), bn2=nn.BatchNorm2d(3), behind=nn.Sigmoid())


class BorderBehind(nn.Module):
    """A convolution that pads zeros behind a BatchNorm, and one of one tap behind that, which takes the border."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.down = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, stride=2, padding=1, groups=3, bias=False)
        self.pointwise = nn.Conv2d(3, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.pointwise(self.down(self.bn(torch.sigmoid(x)))))


class Scaled(nn.Module):
    """Layer scales behind a convolution and in front of one, an offset, and a convolution without a bias that gets none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 4, 3, bias=False), nn.Parameter(torch.ones(4))
        self.bn, self.divisor, self.mean = nn.BatchNorm2d(4), nn.Parameter(torch.ones(4, 1, 1)), nn.Parameter(torch.ones(4, 1, 1))
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x / 255) * self.scale.view(1, -1, 1, 1)
        y = torch.sigmoid(self.bn(torch.sigmoid(y))) / self.divisor
        return torch.sigmoid(0.5 * (self.mean - self.last(y)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "layer scales": Scaled,
    "border behind": BorderBehind,
    "residual": Residual,
    "branches": Branches,
    "concatenation": Joined,
    "frozen": Frozen,
    "constants": Constant,
    "tied": Tied,
    "ahead": ahead,
    "transposed": transposed,
    "norm in a norm": norm_in_norm,
}


def with_weights(network: nn.Module, seed: int) -> nn.Module:
    """Give a network random weights and statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for number, norm in enumerate(part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)):
            trained(norm, seed=100 * seed + number)
    return network.eval()


def arrays_of(network: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}


def plan_and_anew(make: Callable[[], nn.Module]) -> tuple[FoldPlan, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the plan of a network, other weights of it, and what folding with them anew gives."""
    sample = torch.zeros(SHAPE)
    plan = exporter.fold(with_weights(make(), 0), sample).plan
    other = with_weights(make(), 1)
    return plan, arrays_of(other), arrays_of(exporter.fold(other, sample))


def assert_same_bits(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert sorted(got) == sorted(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        assert got[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_new_weights_are_folded_bit_for_bit(make, tmp_path):
    """A plan, written and read again, gives the bits of a fresh fold of the new weights."""
    plan, weights, expected = plan_and_anew(make)
    assert plan.attempts
    write_plan(plan, tmp_path / "plan.json")
    assert_same_bits(exporter.apply_plan(plan, weights), expected)
    assert_same_bits(exporter.apply_plan(tmp_path / "plan.json", weights), expected)
    assert read_plan(tmp_path / "plan.json").to_json() == plan.to_json()


def test_half_precision_is_rounded_once():
    """bfloat16 weights give the bits of a fresh fold in bfloat16."""

    def make() -> nn.Module:
        return Residual().to(torch.bfloat16)

    sample = torch.zeros(SHAPE, dtype=torch.bfloat16)
    plan = exporter.fold(with_weights(make(), 0), sample).plan
    other = with_weights(make(), 1)
    weights = {
        n: t.detach().view(torch.uint16).numpy().view("bfloat16") if t.is_floating_point() else t.numpy() for n, t in other.state_dict().items()
    }
    got = exporter.apply_plan(plan, weights)
    for name, tensor in exporter.fold(other, sample).state_dict().items():
        assert got[name].view(np.uint16).tobytes() == tensor.detach().view(torch.uint16).numpy().tobytes()


def test_safetensors_in_and_out(tmp_path):
    """Paths are read and written as safetensors; half precision is widened, and what no fold changes is as it was."""
    plan, weights, _ = plan_and_anew(Residual)
    half = {name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in weights.items()}
    save_file(half, tmp_path / "new.safetensors")
    got = exporter.apply_plan(plan, tmp_path / "new.safetensors", output=tmp_path / "folded.safetensors")
    wide = {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in half.items()}
    assert_same_bits(got, exporter.apply_plan(plan, wide))
    assert_same_bits(load_file(tmp_path / "folded.safetensors"), got)
    assert got["head.weight"].tobytes() == wide["head.weight"].tobytes()


def test_no_torch_is_needed(tmp_path):
    """Applying a plan imports NumPy and no torch."""
    plan, weights, expected = plan_and_anew(Residual)
    write_plan(plan, tmp_path / "plan.json")
    save_file(weights, tmp_path / "new.safetensors")
    script = (
        "import sys, exporter\n"
        "exporter.apply_plan('plan.json', 'new.safetensors', output='folded.safetensors')\n"
        "print([name for name in ('torch', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert_same_bits(load_file(tmp_path / "folded.safetensors"), expected)


def pooled() -> nn.Module:
    return Sequence(conv=nn.Conv2d(3, 4, 3), pool=nn.MaxPool2d(2), bn=nn.BatchNorm2d(4), act=nn.ReLU())


def before_padding() -> nn.Module:
    return Sequence(act=nn.ReLU(), bn=nn.BatchNorm2d(3), conv=nn.Conv2d(3, 4, 3, padding=1))


def behind() -> nn.Module:
    return Sequence(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))


def set_(network: nn.Module, gamma: float, beta: float = 0.5, mean: float = 0.0) -> nn.Module:
    with torch.no_grad():
        for tensor, value in ((network.bn.weight, gamma), (network.bn.bias, beta), (network.bn.running_mean, mean)):
            tensor.fill_(value)
    return network.eval()


@pytest.mark.parametrize(
    ("make", "first", "then"),
    [
        (pooled, (1.0,), (-1.0,)),
        (pooled, (-1.0,), (1.0,)),
        (before_padding, (1.0, 0.0), (1.0, 0.5)),
        (before_padding, (1.0, 0.5), (1.0, 0.0)),
        (behind, (1.0,), (3e38,)),
        (behind, (3e38,), (1.0,)),
        (behind, (1.0,), (float("nan"),)),
    ],
    ids=["maximum, negative now", "maximum, positive now", "padding, a shift now", "padding, no shift now", "too large now", "in range now", "nan"],
)
def test_numbers_that_need_another_plan_are_refused(make, first, then):
    """Where a choice depends on numbers, other numbers for which it would be another are refused, whichever way round."""
    torch.manual_seed(0)
    network = make()
    with torch.no_grad():
        network.conv.weight.mul_(10.0)
    plan = exporter.fold(set_(network, *first), torch.zeros(SHAPE)).plan
    weights = arrays_of(set_(network, *then))
    with pytest.raises(FoldError, match="E364") as caught:
        exporter.apply_plan(plan, weights)
    assert caught.value.facts["batch norm"] == "bn"
    same = arrays_of(set_(network, *first))
    assert_same_bits(exporter.apply_plan(plan, same), arrays_of(exporter.fold(network, torch.zeros(SHAPE))))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("conv1.weight"), "conv1.weight: missing"),
        (lambda w: w.update({"conv1.weihgt": w.pop("conv1.weight")}), "it has conv1.weight"),
        (lambda w: w.update({"head.bias": np.zeros(6, np.float32)}), "got (6,), expected (5,)"),
        (lambda w: w.update({"head.bias": np.zeros(5)}), "got float64, expected float32"),
    ],
    ids=["missing", "misspelt", "shape", "precision"],
)
def test_weights_of_another_network_are_refused(change, said):
    """Missing, unknown and misshapen tensors, and such as would lose precision, are named."""
    plan, weights, _ = plan_and_anew(Residual)
    change(weights)
    with pytest.raises(LayoutError, match="E363") as caught:
        exporter.apply_plan(plan, weights)
    assert said in caught.value.facts["found"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[: len(text) // 2], "no JSON"),
        (lambda text: "{}", "no fold plan"),
        (lambda text: text.replace('"schema":1', '"schema":99'), "schema 99"),
        (lambda text: text.replace("1e-05", "1e-03"), "digest differs"),
        (lambda text: text.replace('"is_taken":true', '"is_taken":false', 1), "digest differs"),
    ],
    ids=["cut off", "something else", "another schema", "another number", "another decision"],
)
def test_damaged_or_foreign_plan_is_refused(change, said, tmp_path):
    """A plan that is not as it was written is refused before anything is computed."""
    plan, weights, _ = plan_and_anew(Residual)
    text = change(plan.to_json())
    assert text != plan.to_json()
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ArtifactError, match="E362") as caught:
        exporter.apply_plan(tmp_path / "plan.json", weights)
    assert said in caught.value.facts["found"]


def test_missing_plan_is_refused(tmp_path):
    """A plan that is not there is said to be missing."""
    with pytest.raises(ArtifactError, match="E361"):
        exporter.apply_plan(tmp_path / "plan.json", {})


def test_weights_that_torch_computes_have_no_plan():
    """A normalised weight is a sum that NumPy adds up in another order, so there is a fold but no plan."""
    folded = exporter.fold(Sequence(conv=parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), bn=nn.BatchNorm2d(4)), torch.zeros(SHAPE))
    assert len(folded.folded) == 1
    with pytest.raises(FoldError, match="E360") as caught:
        folded.plan  # noqa: B018
    assert "computed with aten." in caught.value.facts["found"]


def test_json_says_what_it_is():
    """The file names its format, its schema, its version, and every weight by name."""
    plan, weights, _ = plan_and_anew(Residual)
    document = json.loads(plan.to_json())
    assert (document["format"], document["schema"]) == ("exporter fold plan", 1)
    assert document["plan"]["made_by"] == {"exporter": exporter.__version__}
    assert set(document["plan"]["weights"]) == set(weights)
    assert document["plan"]["results"]["conv1.bias"] == {"dtype": "float32", "operator": "conv2d", "part": "bias"}


def test_digits_fixture_through_the_command_line(digits: Path, run_cli):
    """``exporter fuse-bn --plan`` writes the plan, also of a graph that is up to date; the baked weights give the folded program's."""
    first = run_cli("fuse-bn", "--plan", "plan.json", "--json", "-q", cwd=digits)
    assert json.loads(first.stdout)["plan"] == "plan.json"
    text = (digits / "plan.json").read_text()
    run_cli("fuse-bn", "--plan", "plan.json", cwd=digits)
    assert (digits / "plan.json").read_text() == text
    from exporter.graph import load_graph

    graph = load_graph(digits / ".exporter" / "digits.fused.pt2")
    expected = {name: tensor.detach().numpy() for name, tensor in graph.folded_program.state_dict.items()}
    assert_same_bits(exporter.apply_plan(digits / "plan.json", digits / ".exporter" / "digits.baked.safetensors"), expected)
