"""Layouts with plain labels: what each trainer writes, and what must not be taken for an average."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from exporter.artifacts import LayoutReading
from exporter.errors import LayoutError

Read = Callable[..., LayoutReading]
Bake = Callable[..., Any]


def test_rt_detr(model: nn.Module, other_model: nn.Module, read: Read, baked: Bake) -> None:
    """``ema.module`` is a key, not a prefix; the decay ramps up, and ``warmups`` counts where it was saved."""
    content = {"model": model.state_dict(), "ema": {"module": other_model.state_dict(), "updates": 9000}, "last_epoch": 3}
    reading = read(content)
    assert (reading.layout, reading.candidates[0].updates, reading.candidates[0].schedule) == ("rt-detr", 9000, "0.9999·(1-exp(-n/2000))")
    assert np.all(baked(content)[1]["0.weight"] == other_model.state_dict()["0.weight"].numpy())
    content["ema"]["warmups"] = 1000
    assert read(content).candidates[0].schedule == "0.9999·(1-exp(-n/1000))"


def test_k_diffusion(model: nn.Module, other_model: nn.Module, read: Read) -> None:
    """``ema_sched`` counts the updates."""
    schedule = {"inv_gamma": 1.0, "power": 2 / 3, "min_value": 0.0, "max_value": 0.9999, "start_at": 0, "last_epoch": 4000}
    reading = read({"model": model.state_dict(), "model_ema": other_model.state_dict(), "ema_sched": schedule, "opt": {}, "epoch": 1, "step": 9})
    (candidate,) = reading.candidates
    assert (reading.layout, candidate.name, candidate.updates, candidate.decay) == ("k-diffusion", "model_ema", 4000, 0.9999)
    assert candidate.state == "warming", "the decay still rises, and the average follows the weights closely"


def test_dit(model: nn.Module, other_model: nn.Module, read: Read, baked: Bake) -> None:
    """The four keys of the script; the decay is the script's own."""
    content = {"model": model.state_dict(), "ema": other_model.state_dict(), "opt": {}, "args": argparse.Namespace(epochs=1)}
    reading = read(content)
    assert (reading.layout, reading.candidates[0].decay, reading.candidates[0].updates) == ("dit", 0.9999, None)
    assert np.all(baked(content)[1]["0.weight"] == other_model.state_dict()["0.weight"].numpy())
    assert read({**content, "epoch": 1}).layout == "dict"


def test_fairseq(read: Read, baked: Bake) -> None:
    """Half and float32 average are both listed and one is to be named; names with version are raw."""
    raw = {"encoder.weight": torch.ones(2).half(), "decoder.version": torch.tensor([3.0])}
    ema = {"encoder.weight": torch.zeros(2).half()}
    content = {"model": raw, "extra_state": {"epoch": 1, "ema": ema, "ema_fp32_params": {"encoder.weight": torch.full((2,), 0.25)}}}
    reading = read(content)
    assert (reading.layout, [c.name for c in reading.candidates]) == ("fairseq", ["extra_state.ema", "extra_state.ema_fp32_params"])
    with pytest.raises(LayoutError, match="several EMAs"):
        baked(content)
    _, arrays = baked(content, ema="extra_state.ema_fp32_params")
    assert arrays["encoder.weight"].dtype == np.float32
    assert set(arrays) == set(raw)


def test_d2go(model: nn.Module, other_model: nn.Module, read: Read, baked: Bake) -> None:
    """``ema_state`` lists parameters before buffers: names decide, not the order."""
    names = [*(name for name, _ in other_model.named_parameters()), *(name for name, _ in other_model.named_buffers())]
    content = {"model": model.state_dict(), "ema_state": {name: other_model.state_dict()[name] for name in names}}
    assert [c.name for c in read(content).candidates] == ["ema_state"]
    assert np.all(baked(content)[1]["1.running_var"] == other_model.state_dict()["1.running_var"].numpy())


def trainable(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what home-made loops keep: parameters alone."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("place", ["ema", ""])
def test_shadow_and_backup(place: str, model: nn.Module, other_model: nn.Module, read: Read, baked: Bake) -> None:
    """``shadow`` is the average and buffers are raw; a backup left over from before changes nothing."""
    ema = {"shadow": trainable(other_model), "backup": trainable(nn.Sequential(*model)), "decay": 0.99, "num_updates": 900}
    for backup in ({}, {name: tensor + 1 for name, tensor in ema["backup"].items()}):
        inner = {**ema, "backup": backup}
        content = {"model": model.state_dict(), **({"ema": inner} if place else inner)}
        (candidate,) = read(content).candidates
        assert (candidate.name, candidate.decay, candidate.updates) == (place or "shadow", 0.99, 900)
        assert np.all(baked(content)[1]["0.weight"] == other_model.state_dict()["0.weight"].numpy())
        assert np.all(baked(content, choice="raw")[1]["0.weight"] == model.state_dict()["0.weight"].numpy())


def test_saved_while_the_shadow_was_applied(model: nn.Module, other_model: nn.Module, read: Read, baked: Bake) -> None:
    """``model`` equal to ``shadow`` with a full backup: the raw weights are in the backup, whatever the keys are called."""
    content = {"model": other_model.state_dict(), "ema": {"shadow": trainable(other_model), "backup": trainable(model)}}
    reading = read(content)
    assert reading.raw_at == "ema/backup"
    assert "applied" in reading.remarks[0]
    assert np.all(baked(content, choice="raw")[1]["0.weight"] == model.state_dict()["0.weight"].numpy())
    assert np.all(baked(content)[1]["0.weight"] == other_model.state_dict()["0.weight"].numpy())


def dino() -> dict[str, object]:
    """Return student and teacher as DINO saves them."""
    student = {"module.backbone.weight": torch.full((2,), 2.0), "module.head.weight": torch.full((1,), 2.0)}
    teacher = {name.removeprefix("module."): tensor / 4 for name, tensor in student.items()}
    return {"student": student, "teacher": teacher, "optimizer": {}, "epoch": 1, "dino_loss": {"center": torch.zeros(1, 2)}}


def moco() -> dict[str, object]:
    """Return both encoders in one state dict, beside the queue."""
    query = {f"module.encoder_q.{name}": torch.full((2,), 2.0) for name in ("conv.weight", "fc.weight")}
    key = {name.replace("encoder_q", "encoder_k"): tensor / 4 for name, tensor in query.items()}
    return {"epoch": 1, "arch": "resnet50", "state_dict": {**query, **key, "module.queue": torch.ones(2, 4), "module.queue_ptr": torch.tensor([1])}}


@pytest.mark.parametrize(
    ("content", "layout", "name", "key"), [(dino(), "dino", "teacher", "head.weight"), (moco(), "moco", "encoder_k", "fc.weight")]
)
def test_momentum_encoders_are_taken_only_by_name(content: dict[str, object], layout: str, name: str, key: str, read: Read, baked: Bake) -> None:
    """A teacher is listed and said to be one; without its name it is refused, with it baked under the student's names."""
    reading = read(content)
    (candidate,) = reading.candidates
    assert (reading.layout, candidate.name) == (layout, name)
    assert f"--ema {name}" in candidate.remark
    with pytest.raises(LayoutError, match="taken only by name") as refused:
        baked(content)
    assert refused.value.code == "E225"
    assert np.all(baked(content, ema=name)[1][key] == 0.5)
    assert np.all(baked(content, choice="raw")[1][key] == 2.0)


def test_a_momentum_encoder_never_competes_with_an_average(read: Read, baked: Bake) -> None:
    """An EMA beside a teacher is the one that is baked."""
    student = {name.removeprefix("module."): tensor for name, tensor in dino()["student"].items()}
    content = {**dino(), "model": student, "ema": {name: tensor / 8 for name, tensor in student.items()}}
    assert {c.name for c in read(content).candidates} == {"ema", "teacher"}
    assert np.all(baked(content)[1]["head.weight"] == 0.25)


def test_what_only_looks_like_an_average(read: Read) -> None:
    """Codebooks of vector quantisation, layers called ema or shadow and BatchNorm's own averages are weights like any other."""
    state = {
        "quantize.embed": torch.ones(2, 2),
        "quantize.embed_avg": torch.ones(2, 2),
        "quantize.cluster_size": torch.ones(2),
        "layers.0.ema.damping_factor": torch.ones(2),
        "momentum_encoder.weight": torch.ones(2),
        "shadow.weight": torch.ones(2),
        "bn.moving_mean": torch.ones(2),
        "decay": torch.tensor(0.9),
        "num_updates": torch.tensor(3),
    }
    for content in (state, {"state_dict": state}, {"meta": {}, "state_dict": state}, {"model": state, "ema": None, "model_ema": {}}):
        reading = read(content)
        assert (reading.candidates, reading.raw_num_tensors) == ((), len(state))


def test_equal_copies_are_said(model: nn.Module, other_model: nn.Module, read: Read) -> None:
    """An average with the bytes of the raw weights, by the file's own checksums, is said to be none or applied."""
    twin = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (equal,) = read({"model": model.state_dict(), "ema": twin}).candidates
    (apart,) = read({"model": model.state_dict(), "ema": other_model.state_dict()}).candidates
    assert "equal to the raw weights" in equal.remark
    assert apart.remark == ""


def test_an_average_is_named_by_its_decay(model: nn.Module, other_model: nn.Module, baked: Bake) -> None:
    """``decay=0.999`` takes the one average that is known to have it; none or several of it are refused with the list."""
    content = {
        "model": model.state_dict(),
        "ema": {"shadow": model.state_dict(), "decay": 0.99},
        "shadow": {"shadow": other_model.state_dict(), "decay": 0.999},
    }
    weights, arrays = baked(content, ema="decay=0.999")
    assert weights.summary.choice == "ema:shadow"
    assert np.all(arrays["0.weight"] == other_model.state_dict()["0.weight"].numpy())
    for wrong in ("decay=0.9", "decay=", "decay=nan"):
        with pytest.raises(LayoutError, match=r"(?s)E254.*no average is known.*ema: decay 0\.99.*shadow: decay 0\.999"):
            baked(content, ema=wrong)
    content["shadow"]["decay"] = 0.99
    with pytest.raises(LayoutError, match=r"(?s)E254.*several"):
        baked(content, ema="decay=0.99")
