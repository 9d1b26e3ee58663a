"""Schedule-free optimizers: what is computed from their files is what ``optimizer.eval()`` leaves in the model."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from exporter.artifacts import TensorSpec, Weights
from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import LayoutError
from exporter.tensors import read_tensor
from exporter.weights import bake, read_layout

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

schedulefree = pytest.importorskip("schedulefree", reason="schedulefree is not installed")

ULPS = 4
"""The library interpolates in float32, twice: eval() gives x up to some units in the last place of the weights."""


def network() -> nn.Sequential:
    """Return a small network with BatchNorm and tensors of equal shapes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 1))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 30) -> None:
    """Train with or without closures, as the optimizer wants it."""
    random = torch.Generator().manual_seed(1)
    model.train()
    if hasattr(optimizer, "train"):
        optimizer.train()

    def closure(data: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(data) - data.sum(1, keepdim=True)).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        data = torch.randn(16, 4, generator=random)
        if "Closure" in type(optimizer).__name__:
            optimizer.step(functools.partial(closure, data))
        else:
            closure(data)
            optimizer.step()


def saved(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    """Save model and optimizer as training scripts do."""
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}, path)
    return path


def baked(path: Path, **settings: object) -> tuple[Weights, dict[str, np.ndarray]]:
    """Bake, and return the artefact and its arrays."""
    order = settings.pop("order", None)
    weights = bake(open_checkpoint(path), BakeConfig(**settings), path.with_suffix(".safetensors"), parameter_order=order)
    return weights, {name: read_tensor(ref) for name, ref in open_checkpoint(weights.path).root.items()}


def assert_is_x(arrays: dict[str, np.ndarray], model: nn.Module) -> None:
    """Compare with the model after ``optimizer.eval()``: computed tensors within a few ulp, buffers bit for bit."""
    parameters = dict(model.named_parameters())
    for name, tensor in model.state_dict().items():
        wanted = tensor.detach().numpy()
        if name in parameters:
            scale = np.spacing(np.maximum(np.abs(wanted), np.abs(wanted).max() * 0.1))
            assert np.all(np.abs(arrays[name] - wanted) <= ULPS * scale), name
        else:
            assert arrays[name].tobytes() == wanted.tobytes(), name


MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": functools.partial(schedulefree.AdamWScheduleFree, lr=0.02, betas=(0.8, 0.99), warmup_steps=5),
    "AdamW paper": functools.partial(schedulefree.AdamWScheduleFreePaper, lr=0.02),
    "AdamW reference": functools.partial(schedulefree.AdamWScheduleFreeReference, lr=0.02),
    "RAdam": functools.partial(schedulefree.RAdamScheduleFree, lr=0.02),
    "SGD": functools.partial(schedulefree.SGDScheduleFree, lr=0.1, momentum=0.95),
    "SGD reference": functools.partial(schedulefree.SGDScheduleFreeReference, lr=0.1),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_train_mode(kind: str, tmp_path: Path) -> None:
    """From a file of train mode, x: exactly y / beta + (1 - 1 / beta) z in float64 rounded once, or the x that the reference keeps."""
    model = network()
    optimizer = MAKERS[kind](model.parameters())
    train(model, optimizer)
    path = saved(tmp_path / "train.pt", model, optimizer)
    y = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights, arrays = baked(path)
    group = optimizer.param_groups[0]
    beta = group["betas"][0] if "betas" in group else group["momentum"]
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        exact = state["x"].double() if "x" in state else y[name].double() * (1 / beta) + state["z"].double() * (1 - 1 / beta)
        np.testing.assert_array_equal(arrays[name], exact.float().numpy(), err_msg=name)
    optimizer.eval()
    assert_is_x(arrays, model)
    assert not np.allclose(arrays["0.weight"], y["0.weight"].numpy(), rtol=1e-3), "x and y must differ"
    summary = weights.summary
    assert (summary.layout, summary.choice, summary.num_averaged, summary.num_copied) == ("schedule-free", "ema:schedule-free", 8, 3)
    assert (summary.candidate.updates, summary.candidate.state) == (30, "settled")
    np.testing.assert_array_equal(baked(path, choice="raw")[1]["0.weight"], y["0.weight"].numpy())


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "RAdam"])
def test_after_eval(kind: str, tmp_path: Path) -> None:
    """Saved after optimizer.eval() the weights are the average already: they are copied, and there are no raw ones."""
    model = network()
    optimizer = MAKERS[kind](model.parameters())
    train(model, optimizer)
    optimizer.eval()
    path = saved(tmp_path / "eval.pt", model, optimizer)
    reading = read_layout(open_checkpoint(path))
    assert (reading.layout, reading.raw_at, "average already" in reading.candidates[0].remark) == ("schedule-free", None, True)
    _, arrays = baked(path)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy())
    with pytest.raises(LayoutError, match="E201"):
        baked(path, choice="raw")


@pytest.mark.parametrize("maker", [schedulefree.AdamWScheduleFreeClosure, schedulefree.SGDScheduleFreeClosure, schedulefree.RAdamScheduleFreeClosure])
def test_closures_leave_the_average_in_the_model(maker: Callable[..., torch.optim.Optimizer], tmp_path: Path) -> None:
    """The variants with a closure have no modes: between steps the model holds x."""
    model = network()
    optimizer = maker(model.parameters(), lr=0.02)
    train(model, optimizer, steps=3)
    weights, arrays = baked(saved(tmp_path / "closure.pt", model, optimizer))
    assert weights.summary.choice == "ema:schedule-free"
    np.testing.assert_array_equal(arrays["0.weight"], model.state_dict()["0.weight"].numpy())


def test_wrapper_does_not_tell(tmp_path: Path) -> None:
    """ScheduleFreeWrapper writes neither momentum nor mode: no average is claimed; its reference keeps x, which is taken."""
    model = network()
    optimizer = schedulefree.ScheduleFreeWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    train(model, optimizer, steps=3)
    path = saved(tmp_path / "wrapped.pt", model, optimizer)
    with pytest.raises(LayoutError, match=r"(?s)E204.*neither its momentum nor its mode.*--weights raw"):
        baked(path)
    np.testing.assert_array_equal(baked(path, choice="raw")[1]["0.weight"], model.state_dict()["0.weight"].numpy())
    model = network()
    optimizer = schedulefree.ScheduleFreeWrapperReference(torch.optim.SGD(model.parameters(), lr=0.1))
    train(model, optimizer, steps=3)
    _, arrays = baked(saved(tmp_path / "reference.pt", model, optimizer))
    optimizer.eval()
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy())


def test_groups_are_named_by_shape(tmp_path: Path) -> None:
    """With matrices and vectors in groups of their own, as for weight decay, the shapes leave one order, and each group its beta."""
    model = network()
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) is wanted] for wanted in (True, False))
    optimizer = schedulefree.AdamWScheduleFree([{"params": vectors, "betas": (0.7, 0.9)}, {"params": matrices}], lr=0.02)
    train(model, optimizer)
    _, arrays = baked(saved(tmp_path / "groups.pt", model, optimizer))
    optimizer.eval()
    assert_is_x(arrays, model)


def test_an_open_order_needs_names(tmp_path: Path) -> None:
    """Equal shapes in two groups leave the order open, with a model and without; names that the optimizer was given close it."""
    for named in (False, True):
        model = network()
        pairs = list(model.named_parameters())
        groups = [pairs[0::2], pairs[1::2]]
        listed = [{"params": group if named else [parameter for _, parameter in group]} for group in (groups[1], groups[0])]
        optimizer = schedulefree.SGDScheduleFree(listed, lr=0.1)
        train(model, optimizer)
        path = saved(tmp_path / f"open{named}.pt", model, optimizer)
        if named:
            _, arrays = baked(path)
            optimizer.eval()
            assert_is_x(arrays, model)
            continue
        model.register_buffer("anchors", torch.ones(4))
        shuffled = [{"params": list(group)} for group in (model[2].parameters(), itertools.chain(model[0].parameters(), model[3].parameters()))]
        optimizer = schedulefree.SGDScheduleFree([*shuffled, {"params": list(model[1].parameters())}], lr=0.1)
        train(model, optimizer)
        path = saved(tmp_path / "open.pt", model, optimizer)
        with pytest.raises(LayoutError, match="E219"):
            baked(path)
        order = tuple(TensorSpec(name, tuple(parameter.shape), "float32") for name, parameter in model.named_parameters())
        with pytest.raises(LayoutError, match=r"(?s)E220.*named_parameters"):
            baked(path, order=order)


def test_the_model_tells_buffers_from_parameters(tmp_path: Path) -> None:
    """A buffer of a parameter's shape leaves the order open; the model's parameters close it. A tensor without gradients is copied."""
    model = network()
    model[0].register_buffer("offset", torch.ones(4))
    model[3].bias.requires_grad_(requires_grad=False)
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.02)
    train(model, optimizer)
    path = saved(tmp_path / "buffer.pt", model, optimizer)
    with pytest.raises(LayoutError, match="E219"):
        baked(path)
    order = tuple(TensorSpec(name, tuple(parameter.shape), "float32") for name, parameter in model.named_parameters())
    _, arrays = baked(path, order=order)
    optimizer.eval()
    assert_is_x(arrays, model)
