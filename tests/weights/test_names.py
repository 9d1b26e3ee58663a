"""Names that trainers lose or change: rebuilt forward, taken from the model's order, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from exporter.artifacts import Digest, LayoutReading, TensorSpec
from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import LayoutError
from exporter.tensors import read_tensor
from exporter.weights import bake, read_layout, weights_key

Read = Callable[..., LayoutReading]
Save = Callable[..., Path]
Bake = Callable[..., Any]


def latent_diffusion(**more: torch.Tensor) -> dict[str, object]:
    """Return a module with LitEma around its part ``model``: averaged parameters without dots, the autoencoder beside it."""
    state = {
        "betas": torch.linspace(0, 1, 3),
        "model.diffusion_model.out.weight": torch.full((2, 2), 2.0),
        "model.diffusion_model.norm.running_mean": torch.full((2,), 2.0),
        "model.diffusion_model.norm.num_batches_tracked": torch.tensor(20),
        "first_stage_model.decoder.weight": torch.full((3,), 2.0),
        "model_ema.decay": torch.tensor(0.99),
        "model_ema.num_updates": torch.tensor(5000, dtype=torch.int32),
        "model_ema.diffusion_modeloutweight": torch.full((2, 2), 0.5),
    }
    return {"state_dict": {**state, **more}, "pytorch-lightning_version": "1.4.2"}


def test_lit_ema(read: Read, baked: Bake) -> None:
    """Names get their dots back from the raw ones; what is not averaged is raw; decay and updates are read, never baked."""
    reading = read(latent_diffusion())
    (candidate,) = reading.candidates
    assert (reading.layout, candidate.name, candidate.updates, candidate.decay) == ("lit-ema", "model_ema", 5000, pytest.approx(0.99))
    assert (candidate.schedule, candidate.state) == ("min(0.99, (1+n)/(10+n))", "settled")
    weights, averaged = baked(latent_diffusion())
    assert set(averaged) == {name for name in latent_diffusion()["state_dict"] if not name.startswith("model_ema.")}
    assert np.all(averaged["model.diffusion_model.out.weight"] == 0.5)
    assert np.all(averaged["model.diffusion_model.norm.running_mean"] == 2.0)
    assert np.all(averaged["first_stage_model.decoder.weight"] == 2.0)
    assert (weights.summary.num_averaged, weights.summary.num_copied) == (1, 4)
    assert np.all(baked(latent_diffusion(), choice="raw")[1]["model.diffusion_model.out.weight"] == 2.0)


def test_lit_ema_with_a_constant_decay(read: Read) -> None:
    """``num_updates`` of -1 means that the decay is constant, and that updates were not counted."""
    state = latent_diffusion(**{"model_ema.num_updates": torch.tensor(-1, dtype=torch.int32)})
    (candidate,) = read(state).candidates
    assert (candidate.updates, candidate.state) == (None, "unknown")
    assert "constant" in candidate.schedule


def test_lit_ema_of_the_whole_module(baked: Bake) -> None:
    """Where the module itself is averaged no prefix was dropped."""
    state = {"encoder.a.weight": torch.ones(2), "decoder.weight": torch.ones(3)}
    ema = {"encoderaweight": torch.zeros(2), "decoderweight": torch.zeros(3), "decay": torch.tensor(0.9), "num_updates": torch.tensor(900)}
    _, averaged = baked({"state_dict": {**state, **{f"model_ema.{name}": value for name, value in ema.items()}}}, allow_cold=True)
    assert {name: float(value.max()) for name, value in averaged.items()} == {"encoder.a.weight": 0.0, "decoder.weight": 0.0}


@pytest.mark.parametrize(
    ("names", "lost"),
    [(("model.block1.0.weight", "model.block.10.weight"), "block10weight"), (("model.decay", "model.other.weight"), "decay")],
    ids=["two names in one", "a parameter called decay"],
)
def test_lit_ema_that_lost_a_tensor_is_refused(names: tuple[str, str], lost: str, read: Read) -> None:
    """Two tensors written under one name, or one over the counter: the average is incomplete, and is not baked."""
    ema = {name.removeprefix("model.").replace(".", ""): torch.ones(2) for name in names} | {"num_updates": torch.tensor(3)}
    ema.setdefault("decay", torch.tensor(0.99))
    state = {**{name: torch.ones(2) for name in names}, **{f"model_ema.{name}": value for name, value in ema.items()}}
    with pytest.raises(LayoutError, match="both written as") as refused:
        read({"state_dict": state})
    assert refused.value.code == "E221"
    assert lost in refused.value.facts["at"]


def test_lit_ema_of_another_model_is_refused(read: Read) -> None:
    """An averaged tensor that no raw name explains belongs to another model."""
    with pytest.raises(LayoutError, match="no raw name explains") as refused:
        read(latent_diffusion(**{"model_ema.unknownweight": torch.ones(1)}))
    assert refused.value.code == "E222"


def ema_pytorch(*, online: bool = True) -> dict[str, torch.Tensor]:
    """Return the flat state dict of ema-pytorch's EMA."""
    copies = {"ema_model.": 0.5, **({"online_model.": 2.0} if online else {})}
    tensors = {f"{prefix}{name}": torch.full((2,), value) for prefix, value in copies.items() for name in ("a.weight", "bn.running_var")}
    counters = {f"{prefix}bn.num_batches_tracked": torch.tensor(20 if value > 1 else 0) for prefix, value in copies.items()}
    return {**tensors, **counters, "initted": torch.tensor(True), "step": torch.tensor(5000)}


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("place", ["", "ema"])
def test_ema_pytorch(online: bool, place: str, read: Read, baked: Bake) -> None:
    """Two prefixes in one dict, alone or in a trainer's file; ``step`` counts calls, so that the updates are unknown."""
    raw = {"a.weight": torch.full((2,), 2.0), "bn.running_var": torch.full((2,), 2.0), "bn.num_batches_tracked": torch.tensor(20)}
    content = {"step": 50_000, "model": raw, place: ema_pytorch(online=online)} if place else ema_pytorch(online=online)
    reading = read(content)
    (candidate,) = reading.candidates
    assert (reading.layout, candidate.name, candidate.updates) == ("ema-pytorch", place or "ema_model", None)
    assert "5000 calls" in candidate.remark
    _, averaged = baked(content)
    assert set(averaged) == set(raw)
    assert np.all(averaged["a.weight"] == 0.5)
    assert np.all(averaged["bn.running_var"] == 0.5)
    if online or place:
        assert averaged["bn.num_batches_tracked"] == 20
        assert np.all(baked(content, choice="raw")[1]["a.weight"] == 2.0)
    else:
        assert reading.raw_at is None


def order_of(model: nn.Module) -> tuple[TensorSpec, ...]:
    """Return name, shape and dtype of the parameters in the model's order."""
    return tuple(TensorSpec(name, tuple(p.shape), str(p.dtype).removeprefix("torch.")) for name, p in model.named_parameters())


def nameless(model: nn.Module) -> list[torch.Tensor]:
    """Return the parameters as torch_ema keeps them."""
    return [parameter.detach().clone() for parameter in model.parameters()]


TORCH_EMA = {"decay": 0.99, "num_updates": None, "collected_params": None}
DIFFUSERS = {
    "decay": 0.9999,
    "min_decay": 0.0,
    "optimization_step": 700,
    "update_after_step": 0,
    "use_ema_warmup": False,
    "inv_gamma": 1.0,
    "power": 2 / 3,
}


@pytest.mark.parametrize("counters", [TORCH_EMA, DIFFUSERS], ids=["torch_ema", "diffusers"])
def test_a_list_gets_its_names_from_the_model(
    counters: dict[str, object], model: nn.Module, other_model: nn.Module, save: Save, tmp_path: Path
) -> None:
    """With the order of the parameters the list is baked under their names; buffers come from the raw weights."""
    path = save({"model": model.state_dict(), "ema": {**counters, "shadow_params": nameless(other_model)}})
    checkpoint = open_checkpoint(path)
    reading = read_layout(checkpoint)
    assert (reading.layout, reading.needs_parameter_order) == ("shadow-params", True)
    assert "order of the model" in reading.candidates[0].remark
    expected = "0.99 constant" if counters is TORCH_EMA else "min(0.9999, (1+(n-1))/(10+(n-1)))"
    assert reading.candidates[0].schedule == expected
    assert not read_layout(checkpoint, parameter_order=order_of(model)).needs_parameter_order
    weights = bake(checkpoint, BakeConfig(), tmp_path / "out.safetensors", parameter_order=order_of(model))
    baked = {name: read_tensor(ref) for name, ref in open_checkpoint(weights.path).root.items()}
    averaged = dict(other_model.named_parameters())
    wanted = {name: averaged.get(name, tensor) for name, tensor in model.state_dict().items()}
    assert set(baked) == set(wanted)
    for name, tensor in wanted.items():
        assert baked[name].tobytes() == tensor.detach().numpy().tobytes()


def test_a_list_without_a_model_is_refused(model: nn.Module, baked: Bake) -> None:
    """Nothing in the file says which tensor is which: the model is asked for, and raw can be baked without it."""
    content = {"model": model.state_dict(), "ema": {**TORCH_EMA, "shadow_params": nameless(model)}}
    with pytest.raises(LayoutError, match="no model is given") as refused:
        baked(content)
    assert refused.value.code == "E219"
    assert "factory" in refused.value.help
    assert baked(content, choice="raw")[0].summary.choice == "raw"


@pytest.mark.parametrize("change", [lambda items: items[:-1], lambda items: items[::-1]], ids=["a tensor fewer", "another order"])
def test_a_list_that_does_not_fit_is_refused(
    change: Callable[[list[torch.Tensor]], list[torch.Tensor]], model: nn.Module, save: Save, tmp_path: Path
) -> None:
    """Count and every shape are checked: parts of a model and other orders are never guessed at."""
    checkpoint = open_checkpoint(save({"model": model.state_dict(), "ema": {**TORCH_EMA, "shadow_params": change(nameless(model))}}))
    with pytest.raises(LayoutError, match="does not fit the model's parameters") as refused:
        bake(checkpoint, BakeConfig(), tmp_path / "out.safetensors", parameter_order=order_of(model))
    assert refused.value.code == "E220"
    assert not (tmp_path / "out.safetensors").exists()


def test_a_list_of_something_else_is_no_average(model: nn.Module, read: Read) -> None:
    """An empty list, and one that holds more than tensors, are nothing to bake."""
    for items in ([], [torch.ones(1), None], {}):
        assert read({"model": model.state_dict(), "ema": {**TORCH_EMA, "shadow_params": items}}).candidates == ()


def test_the_order_is_part_of_what_decides_the_bytes(model: nn.Module) -> None:
    """Another order of the model makes other weights, so it is in the key of the record."""
    order = order_of(model)
    keys = {weights_key(Digest("0" * 64), BakeConfig(), parameter_order=given) for given in (None, order, order[::-1])}
    assert len(keys) == 3


def test_a_prefix_of_the_training_module_is_stripped_on_request(baked: Bake) -> None:
    """``--strip-prefix net.`` takes what stands below it; the module's other tensors stay in the checkpoint."""
    state = {"net.a.weight": torch.ones(2), "loss.weight": torch.ones(1)}
    content = {"state_dict": state, "ema_state_dict": {name: 2 * tensor for name, tensor in state.items()}}
    assert set(baked(content)[1]) == {"net.a.weight", "loss.weight"}
    assert set(baked(content, strip_prefix="net.")[1]) == {"a.weight"}
    assert set(baked(content, strip_prefix="net.", choice="raw")[1]) == {"a.weight"}


def test_a_prefix_that_no_name_has_is_refused(baked: Bake) -> None:
    """Nothing is stripped by guess: the prefixes that there are come with the refusal."""
    with pytest.raises(LayoutError, match=r"begins with 'nett\.'") as refused:
        baked({"state_dict": {"net.a.weight": torch.ones(2)}}, choice="raw", strip_prefix="nett.")
    assert (refused.value.code, refused.value.help) == ("E223", "--strip-prefix net.")
