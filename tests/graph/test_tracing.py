"""Tracing keeps names, keeps the batch free, and says what it cannot trace and where."""

from __future__ import annotations

import random
import warnings
from typing import NamedTuple

import numpy as np
import pytest
import torch
from networks import Sequence
from torch import Tensor, nn

from exporter.config import InputConfig
from exporter.errors import ConfigError, ExportError
from exporter.graph import trace


def image(name: str = "x", shape: tuple[int, ...] = (2, 3, 8, 8), **more: object) -> InputConfig:
    return InputConfig(name=name, shape=shape, **more)


def test_batch_axis_is_dynamic_and_named():
    """A network traced with batch 2 runs with batch 1 and 7, and the axis is called ``batch`` in and out."""
    traced = trace(Sequence(conv=nn.Conv2d(3, 4, 3)).eval(), (image("picture"),))
    assert [(spec.name, spec.shape, spec.dtype) for spec in traced.inputs] == [("picture", ("batch", 3, 8, 8), "float32")]
    assert [(spec.name, spec.shape) for spec in traced.outputs] == [("output", ("batch", 4, 6, 6))]
    for batch in (1, 7):
        assert traced.program.module()(torch.zeros(batch, 3, 8, 8)).shape == (batch, 4, 6, 6)


def test_configured_axes_are_dynamic():
    """``dynamic`` frees other axes, under their own names."""
    network = Sequence(conv=nn.Conv2d(3, 4, 3, padding=1)).eval()
    traced = trace(network, (image(dynamic={"0": "n", "2": "height", "3": "width"}),))
    assert traced.inputs[0].shape == ("n", 3, "height", "width")
    assert traced.outputs[0].shape == ("n", 4, "height", "width")
    assert traced.program.module()(torch.zeros(1, 3, 20, 12)).shape == (1, 4, 20, 12)


class Pair(NamedTuple):
    difference: Tensor
    product: Tensor


class TwoInputs(nn.Module):
    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> dict[str, object]:
        return {"sum": left + right * scale, "rest": (left * 2, right), "pair": Pair(left - right, left * right)}


def test_inputs_are_matched_by_name_and_outputs_named_by_keys():
    """Inputs are put in the order of ``forward``; keys of dictionaries are the names of outputs, nested ones joined."""
    traced = trace(TwoInputs().eval(), (image("right", (2, 3)), image("left", (2, 3))))
    assert [spec.name for spec in traced.inputs] == ["left", "right"]
    assert [spec.name for spec in traced.outputs] == ["sum", "rest.0", "rest.1", "pair.difference", "pair.product"]


class Plain(nn.Module):
    def __init__(self, outputs: str) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> object:
        return {"tuple": (x + 1, x + 2), "number": (x, 3), "sequence": [x * 2]}[self.outputs]


def test_plain_outputs_are_numbered_and_configured_names_win():
    """A tuple gives ``output`` and ``output_1``; names from the configuration replace them."""
    assert [spec.name for spec in trace(Plain("tuple"), (image(),)).outputs] == ["output", "output_1"]
    assert [spec.name for spec in trace(Plain("tuple"), (image(),), outputs=("a", "b")).outputs] == ["a", "b"]


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c"), ("a", "a")], ids=["too few", "too many", "twice"])
def test_names_that_do_not_fit_are_refused(names):
    """The number of configured output names has to fit, and names differ."""
    with pytest.raises(ConfigError, match="E332") as caught:
        trace(Plain("tuple"), (image(),), outputs=names)
    assert "output, output_1" in caught.value.facts["expected"]


def test_output_that_is_no_tensor_is_refused():
    """A network that returns a number beside a tensor is refused by the output's name."""
    with pytest.raises(ExportError, match="E336") as caught:
        trace(Plain("number"), (image(),))
    assert caught.value.facts["output"] == "output_1"


@pytest.mark.parametrize("given", [("left",), ("left", "up"), ("left", "right", "extra")], ids=["missing", "misspelt", "too many"])
def test_inputs_that_do_not_fit_forward_are_refused(given):
    """The message shows the signature of ``forward`` and what was given."""
    with pytest.raises(ConfigError, match="E331") as caught:
        trace(TwoInputs(), tuple(image(name, (2, 3)) for name in given))
    assert "left" in caught.value.facts["forward"]


class DependsOnValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # this line is to be named
            return x
        return -x


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("the head is missing")


class FixesBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3, 64) * 2


class TakesNumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n = int(x.max().item())  # the line
        return x[:, :n]


class LoopsOverValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for i in range(x.sum().int().item()):  # the line
            x = x + i
        return x


class MasksSizes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        chosen = x[x > 0]
        return chosen.sum() if len(chosen) > 3 else x.sum()  # the line


class CallsNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh(x.numpy()))  # the line


class ReadsMemory(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.data_ptr() % 2  # the line


class Asserts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert x.min() >= 0  # the line
        return x


class HalfCond(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x[:, :1], (x,))  # the line


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.inner = torch.jit.script(nn.Conv2d(3, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # the line


@pytest.mark.parametrize(
    ("network", "construct", "way_out"),
    [
        (DependsOnValues, "a branch on the values", "torch.cond"),
        (Asserts, "a branch on the values", "torch.where"),
        (TakesNumber, "a number taken out of a tensor", "keep it a tensor"),
        (LoopsOverValues, "a loop whose length depends on", "fixed number of times"),
        (MasksSizes, "a size that depends on the values", "torch.where(mask"),
        (CallsNumpy, "a conversion to NumPy", "torch's functions"),
        (ReadsMemory, "compiled code that reads", "torch.library.custom_op"),
        (HalfCond, "a torch.cond whose branches", "same shapes"),
        (Scripted, "a scripted module: inner", "scripted from"),
    ],
    ids=lambda part: part.__name__ if isinstance(part, type) else "",
)
def test_construct_and_line_are_named(network, construct, way_out, capfd):
    """What cannot be traced is an error with the construct, the line of the user's code and the way out; torch's notes stay off the screen."""
    with pytest.raises(ExportError, match="E333") as caught:
        trace(network().eval(), (image(),))
    assert caught.value.facts["construct"].startswith(construct)
    assert way_out in caught.value.help
    place, _, source = caught.value.facts["line"].partition(": ")
    assert place.startswith(__file__)
    assert source.endswith(("# the line", "# this line is to be named"))
    assert caught.value.exit_status == 5
    assert caught.value.__cause__ is not None
    assert "".join(capfd.readouterr()) == ""


class Prints(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        print("the shape is", tuple(x.shape)[1:])
        return x + 1


def test_what_a_network_prints_goes_to_standard_error(capfd):
    """``print`` in a network is no obstacle; standard output belongs to the result."""
    trace(Prints(), (image(),))
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "the shape is (3, 8, 8)\n")


class Draws(nn.Module):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source

    def forward(self, x: Tensor) -> Tensor:
        return x * (random.random() if self.source == "python" else float(np.random.rand()))  # noqa: NPY002 - what users write


@pytest.mark.parametrize(("source", "found"), [("python", "the random module of Python"), ("numpy", "numpy.random")])
def test_draws_of_python_are_refused(source, found):
    """A number drawn by Python or NumPy would become a constant without a word."""
    with pytest.raises(ExportError, match="E335") as caught:
        trace(Draws(source), (image(),))
    assert found in caught.value.facts["found"]


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen = x * 2
        return x + self.seen


class WritesToInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 0
        return x.mul_(2) + 1


@pytest.mark.parametrize("network", [Counts(), WritesToInput()], ids=["attributes", "input"])
def test_side_effects_do_not_change_what_is_computed(network):
    """Attributes that a network sets are no obstacle, and a change of the input in place is recorded as it is written."""
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    traced = trace(network, (image(),))
    assert torch.equal(traced.program.module()(x.clone()), network(x.clone()))


class Conditional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))


def test_torch_cond_is_traced():
    """Control flow that torch can record keeps both branches."""
    run = trace(Conditional(), (image(),)).program.module()
    for x in (torch.ones(2, 3, 8, 8), -torch.ones(2, 3, 8, 8)):
        assert torch.equal(run(x), Conditional()(x))


def test_axes_begin_where_the_kernels_fit():
    """An axis that may vary but not below the size of a kernel is traced all the same."""
    network = Sequence(one=nn.Conv2d(3, 4, 3), two=nn.Conv2d(4, 2, 3, stride=2)).eval()
    run = trace(network, (image(dynamic={"0": "n", "2": "height", "3": "width"}),)).program.module()
    x = torch.rand(1, 3, 9, 19)
    assert torch.equal(run(x), network(x))


def test_exception_in_forward_is_named():
    """An exception of the network's own is shown with its type, text and line."""
    with pytest.raises(ExportError, match="E333") as caught:
        trace(Raises(), (image(),))
    assert caught.value.facts["raised"] == "KeyError: 'the head is missing'"
    assert "raise KeyError" in caught.value.facts["line"]


def test_batch_fixed_by_the_network_is_said():
    """A network that writes the batch size into a shape cannot have a dynamic batch; the error says so."""
    with pytest.raises(ExportError, match="E334") as caught:
        trace(FixesBatch(), (image(),))
    assert "batch" in caught.value.facts["torch says"]


def test_random_numbers_in_eval_mode_are_refused():
    """A dropout that stays active would make every comparison a matter of luck."""

    class Stuck(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.5, training=True)

    with pytest.raises(ExportError, match="E335") as caught:
        trace(Stuck(), (image(),))
    assert "dropout" in caught.value.facts["found"]


def test_dropout_in_eval_mode_is_fine():
    """A dropout that does nothing is no random number."""
    trace(Sequence(drop=nn.Dropout()).eval(), (image(),))
