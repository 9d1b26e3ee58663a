"""``exporter.fold``: a module in, the same module without its BatchNorms out."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from networks import Sequence, trained
from torch import Tensor, nn

import exporter
from exporter.config import FoldConfig
from exporter.errors import FoldError, SampleError


def network() -> Sequence:
    parts = {"conv": nn.Conv2d(3, 4, 3, bias=False), "bn": trained(nn.BatchNorm2d(4)), "act": nn.ReLU(), "head": nn.Conv2d(4, 2, 1)}
    return Sequence(**parts)


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), trained(nn.BatchNorm2d(4))

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"sum": self.bn(self.conv(left)) + right, "left": left * 2}


def test_folded_module_is_the_same_function_under_the_same_names():
    """Outputs agree, the BatchNorm is gone, parameters keep their names, and the new bias is called as torch would call it."""
    original = network().eval()
    folded = exporter.fold(original, torch.zeros(2, 3, 8, 8))
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert close(folded(x), original(x))
    assert sorted(folded.state_dict()) == ["conv.bias", "conv.weight", "head.bias", "head.weight"]
    assert [(entry.batch_norm, entry.producer) for entry in folded.folded] == [("bn", "conv")]
    assert folded.refusals == ()
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert "1 BatchNorms folded" in repr(folded)


def test_original_stays_as_it_is_and_shares_no_memory():
    """The mode, the gradients and the numbers of the original stay, and neither module sees what happens to the other."""
    original = network().train()
    original.conv.eval()
    before = copy.deepcopy(original.state_dict())
    folded = exporter.fold(original, torch.zeros(2, 3, 8, 8))
    assert [part.training for part in original.modules()] == [True, False, True, True, True]
    assert all(parameter.requires_grad for parameter in original.parameters())
    expected = folded.head.weight.clone()
    with torch.no_grad():
        original.head.weight.add_(1.0)
        folded.head.bias.add_(1.0)
    assert torch.equal(folded.head.weight, expected)
    assert torch.equal(original.head.bias, before["head.bias"])


class Caches(nn.Module):
    """Keeps what it computed for the next call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn, self.shift = nn.Linear(4, 4), trained(nn.BatchNorm1d(4)), None

    def forward(self, x: Tensor) -> Tensor:
        if self.shift is None:
            self.shift = torch.arange(4.0) * 2
        return self.bn(self.linear(x)) + self.shift


def test_what_the_tracer_leaves_in_attributes_is_taken_out():
    """A module that caches tensors while it runs can be run after it was folded."""
    original = Caches().eval()
    folded = exporter.fold(original, torch.zeros(2, 4))
    assert original.shift is None
    x = torch.randn(3, 4)
    with torch.no_grad():
        assert close(folded(x), original(x))


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict"])
def test_sample_may_be_a_tensor_a_tuple_or_a_dict(form):
    """Inputs are named after the parameters of ``forward``; a batch of one is traced as a batch of any size."""
    left, right = torch.randn(1, 3, 4, 4), torch.randn(1, 4, 4, 4)
    original = (network() if form == "tensor" else TwoInputs()).eval()
    sample = {"tensor": torch.zeros(1, 3, 8, 8), "tuple": (left, right), "dict": {"right": right, "left": left}}[form]
    folded = exporter.fold(original, sample)
    with torch.no_grad():
        if form == "tensor":
            assert close(folded(sample), original(sample))
            return
        wanted = original(left, right)
        for got in (folded(left, right), folded(right=right, left=left), folded(left, right=right)):
            assert list(got) == ["sum", "left"]
            assert close(got["sum"], wanted["sum"])


def test_copies_and_casts_work_as_on_any_module():
    """``deepcopy`` gives an independent module, and ``double`` turns its weights alone."""
    folded = exporter.fold(network(), torch.zeros(2, 3, 8, 8))
    wide = copy.deepcopy(folded).double()
    x = torch.randn(2, 3, 8, 8)
    assert wide(x.double()).dtype is torch.float64
    assert folded(x).dtype is torch.float32
    other = copy.deepcopy(folded)
    with torch.no_grad():
        other.conv.weight.zero_()
    assert folded.conv.weight.abs().max() > 0
    other.load_state_dict(folded.state_dict())
    assert torch.equal(other(x), folded(x))


def test_it_is_stored_as_a_program_and_not_pickled():
    """A copy and the stored program give the same bits; a pickle of the whole is refused with the two ways that there are."""
    folded = exporter.fold(network(), torch.zeros(2, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(copy.deepcopy(folded)(x), folded(x))
    for store in (pickle.dumps, lambda module: torch.save(module, io.BytesIO())):
        with pytest.raises(FoldError, match="E353") as caught:
            store(folded)
        assert "torch.export.save" in caught.value.help
    stored = io.BytesIO()
    torch.export.save(torch.export.export(folded, (x,)), stored)
    stored.seek(0)
    assert torch.equal(torch.export.load(stored).module()(x), folded(x))


class Shifted(nn.Module):
    """Reads a tensor that is a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn, self.shift = nn.Linear(4, 4), trained(nn.BatchNorm1d(4)), torch.arange(4.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.linear(x)) + self.shift


def test_plain_tensors_of_a_module_go_with_it():
    """A tensor that is neither parameter nor buffer is cast and moved with the module, and stays out of the state dict."""
    original = Shifted().eval()
    folded = exporter.fold(original, torch.zeros(2, 4))
    x = torch.randn(3, 4)
    with torch.no_grad():
        assert close(folded(x), original(x))
    assert sorted(folded.state_dict()) == ["linear.bias", "linear.weight"]
    assert folded.double()(x.double()).dtype is torch.float64
    assert original.shift.dtype is torch.float32


def test_tied_weights_stay_tied():
    """Two layers that share a weight that no fold changes share it still, and it is not the original's."""
    original = Sequence(one=nn.Linear(8, 8), bn=trained(nn.BatchNorm1d(8)), act=nn.ReLU(), two=nn.Linear(8, 8), three=nn.Linear(8, 8))
    original.three.weight = original.two.weight
    folded = exporter.fold(original, torch.zeros(2, 8))
    assert folded.two.weight is folded.three.weight
    assert folded.two.weight.data_ptr() != original.two.weight.data_ptr()


def test_axes_may_be_named_and_patterns_kept():
    """``dynamic`` frees more axes than the batch, and a configuration keeps BatchNorms by name."""
    original = network().eval()
    folded = exporter.fold(original, torch.zeros(2, 3, 8, 8), dynamic={"x": {0: "n", 2: "height", 3: "width"}}, config=FoldConfig(keep=("b*",)))
    assert [refusal.batch_norm for refusal in folded.refusals] == ["bn"]
    x = torch.randn(1, 3, 12, 9)
    with torch.no_grad():
        assert close(folded(x), original(x))


@pytest.mark.parametrize(
    ("inputs", "named"),
    [((torch.zeros(2, 3, 9, 8),), {}), ((), {}), ((torch.zeros(2, 3, 8, 8), torch.zeros(1)), {}), ((), {"y": torch.zeros(2, 3, 8, 8)})],
    ids=["other size", "none", "too many", "other name"],
)
def test_inputs_that_do_not_fit_are_refused(inputs, named):
    """A traced network takes its sizes for granted, so other sizes are refused with what was expected."""
    folded = exporter.fold(network(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(SampleError, match="E352") as caught:
        folded(*inputs, **named)
    assert caught.value.facts["expected"] == "x [batch, 3, 8, 8]"


@pytest.mark.parametrize("sample", [3, "x", (torch.zeros(2, 3, 8, 8), 1), [[torch.zeros(2)]], torch.tensor(1.0)], ids=str)
def test_sample_that_is_not_of_tensors_is_refused(sample):
    """Anything but tensors with a batch axis is refused before the network runs."""
    with pytest.raises(SampleError, match="E351"):
        exporter.fold(network(), sample)


def test_folded_module_cannot_be_trained():
    """It has no statistics any more, so training mode is refused; eval mode is where it is."""
    folded = exporter.fold(network(), torch.zeros(2, 3, 8, 8))
    assert folded.eval() is folded
    assert not folded.training
    with pytest.raises(ValueError, match="cannot be trained"):
        folded.train()
