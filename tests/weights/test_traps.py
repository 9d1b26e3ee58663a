"""What must not be taken for an average, or not be believed by its label: each trap, and the test that springs it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from exporter.artifacts import LayoutReading
from exporter.checkpoint import open_checkpoint
from exporter.errors import LayoutError
from exporter.weights import read_layout
from tests.checkpoint import flax_files
from tests.checkpoint.bundles import Bundle

Read = Callable[..., LayoutReading]
Bake = Callable[..., Any]

TRAPS = {
    # labels that lie: the copy called average holds the raw weights
    "Lightning's current_model_state": "test_swapped_layouts.py::test_the_plain_copy_is_the_average",
    "mmengine's ema_state_dict": "test_swapped_layouts.py::test_the_plain_copy_is_the_average",
    "mmcv's ema_ buffers": "test_swapped_layouts.py::test_the_plain_copy_is_the_average",
    "composer's ema_model": "test_swapped_layouts.py::test_the_plain_copy_is_the_average",
    "composer without the swap": "test_swapped_layouts.py::test_composer_without_the_swap",
    "Keras with SwapEMAWeights": "test_keras_layout.py::test_an_average_is_taken_only_by_name",
    "saved while a shadow was applied": "test_dict_layouts.py::test_saved_while_the_shadow_was_applied",
    "half of a signature": "test_swapped_layouts.py::test_half_a_signature_is_not_enough",
    # files that hold the average alone
    "YOLOX": "test_layouts.py::test_yolox_is_said_to_be_averaged_already",
    "ultralytics, stripped": "test_layouts.py::test_stripped_ultralytics_cannot_tell",
    "Lightning after fit": "test_swapped_layouts.py::test_lightning_after_fit_has_no_raw_weights",
    "Keras after fit": "test_keras_layout.py::test_after_fit_nothing_is_beside_the_weights",
    "a file named as an average": "test_names_of_files.py::test_a_name_is_evidence_and_no_proof",
    # values and counters
    "equal copies": "test_dict_layouts.py::test_equal_copies_are_said",
    "a cold average": "test_baking.py::test_cold_average_is_refused_unless_asked_for",
    "torchvision's counter during warm-up": "test_layouts.py::test_torchvision_references",
    "ema-pytorch's step counts calls": "test_names.py::test_ema_pytorch",
    # names
    "wrappers of wrappers": "test_layouts.py::test_averaged_model_over_data_parallel_and_compile",
    "a submodule called module": "test_layouts.py::test_a_submodule_called_module_keeps_its_name",
    "module as a key": "test_dict_layouts.py::test_rt_detr",
    "LitEma lost a tensor": "test_names.py::test_lit_ema_that_lost_a_tensor_is_refused",
    "mmcv lost a tensor": "test_swapped_layouts.py::test_mmcv_names_that_meet_are_refused",
    "a list without names": "test_names.py::test_a_list_without_a_model_is_refused",
    "a list of another model": "test_names.py::test_a_list_that_does_not_fit_is_refused",
    # buffers and dtypes
    "counters are not averaged": "test_baking.py::test_counters_come_from_the_raw_weights",
    "an average of parameters alone": "test_baking.py::test_shadow_of_parameters_takes_buffers_from_raw",
    "half average beside float raw": "test_baking.py::test_half_average_beside_float_raw",
    "fairseq's two precisions": "test_dict_layouts.py::test_fairseq",
    # not weights
    "momentum_buffer, exp_avg, exp_avg_sq": "test_layouts.py::test_optimizer_slots_are_never_weights",
    "every slot of torch's optimizers": "test_traps.py::test_slots_of_every_optimizer_of_torch",
    "slots that are called ema": "test_traps.py::test_slots_are_no_averages_whatever_they_are_called",
    "Keras' numbered slots": "test_keras_layout.py::test_slots_are_not_taken_for_averages",
    "TensorFlow's slots": "test_traps.py::test_slots_of_tensorflow",
    "optax's trace, and optax.ema in a chain": "test_traps.py::test_states_of_optax",
    "z of schedule-free": "test_traps.py::test_z_is_no_average",
    "VQ codebooks, layers called ema or shadow, momentum encoders, moving_mean": "test_dict_layouts.py::test_what_only_looks_like_an_average",
    "layers called ema in an average": "test_traps.py::test_a_layer_called_ema_keeps_its_name",
    "a model whose parts are called ema, shadow, teacher": "test_traps.py::test_a_model_whose_parts_have_the_names_of_averages",
    "momentum encoders of DINO and MoCo": "test_dict_layouts.py::test_momentum_encoders_are_taken_only_by_name",
    "ema: None and the like": "test_layouts.py::test_an_empty_ema_is_no_candidate",
    "empty containers at every level": "test_traps.py::test_keys_that_are_there_and_hold_nothing",
    # several
    "several averages": "test_baking.py::test_several_averages_need_a_choice",
}
"""Trap -> the test that fails if it is stepped into."""


def test_every_trap_has_its_test() -> None:
    """Each test of the table exists."""
    for trap, place in TRAPS.items():
        module, name = place.split("::")
        tree = ast.parse((Path(__file__).parent / module).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{trap}: {place}"


OPTIMIZERS = {
    "SGD": ({"momentum": 0.9}, {"momentum_buffer"}),
    "Adam": ({"amsgrad": True}, {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}),
    "AdamW": ({}, {"step", "exp_avg", "exp_avg_sq"}),
    "ASGD": ({}, {"step", "eta", "mu", "ax"}),
    "Adamax": ({}, {"step", "exp_avg", "exp_inf"}),
    "RMSprop": ({"momentum": 0.9, "centered": True}, {"step", "square_avg", "momentum_buffer", "grad_avg"}),
    "Adadelta": ({}, {"step", "square_avg", "acc_delta"}),
    "Adagrad": ({}, {"step", "sum"}),
    "Rprop": ({}, {"step", "prev", "step_size"}),
    "NAdam": ({}, {"step", "mu_product", "exp_avg", "exp_avg_sq"}),
    "RAdam": ({}, {"step", "exp_avg", "exp_avg_sq"}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_slots_of_every_optimizer_of_torch(name: str, model: nn.Module, read: Read, baked: Bake) -> None:
    """Whatever a slot is called, it is listed as one, is no candidate, and the baked weights are the model's."""
    settings, slots = OPTIMIZERS[name]
    optimizer = getattr(torch.optim, name)(model.parameters(), **settings)
    model(torch.ones(2, 2, 4, 4)).sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    reading = read(content)
    assert reading.candidates == ()
    assert {slot.slot for slot in reading.optimizer_slots} == slots
    assert set(baked(content, choice="raw")[1]) == set(model.state_dict())


@pytest.mark.parametrize("slot", ["ema", "shadow", "average", "ema_model", "state_dict_ema"])
def test_slots_are_no_averages_whatever_they_are_called(slot: str, model: nn.Module, read: Read, baked: Bake) -> None:
    """A slot with the name, and every shape, of an average stays in the optimizer."""
    state = {index: {slot: parameter.detach() + 1} for index, parameter in enumerate(model.parameters())}
    content = {"model": model.state_dict(), "optimizer": {"state": state, "param_groups": [{"params": list(state)}]}}
    reading = read(content)
    assert reading.candidates == ()
    assert [found.slot for found in reading.optimizer_slots] == [slot]
    with pytest.raises(LayoutError, match="has none"):
        baked(content)


def test_slots_of_tensorflow(tmp_path: Path) -> None:
    """Momentum and the moments of Adam, which stand below each variable, are no averages of it."""
    made = Bundle()
    for name, value in (("w", 2.0), ("w/Momentum", 7.0), ("w/Adam", 8.0), ("w/Adam_1", 9.0)):
        made.add(name, np.full((2, 2), value, "f4"))
    assert read_layout(open_checkpoint(made.write(tmp_path))).candidates == ()


def test_states_of_optax(tmp_path: Path) -> None:
    """The trace of momentum, the moments of Adam and an average of gradients in a chain are no averages of weights."""
    weights = {"dense": {"kernel": np.full((2, 2), 2.0, "f4")}}
    chain = {
        "0": {"trace": weights},
        "1": {"mu": weights, "nu": weights, "count": np.array(7, "i4")},
        "2": {"ema": weights, "count": np.array(7, "i4")},
    }
    path = tmp_path / "state.msgpack"
    path.write_bytes(flax_files.packed({"step": 7, "params": weights, "opt_state": chain}))
    assert read_layout(open_checkpoint(path)).candidates == ()


@pytest.mark.parametrize("train_mode", [True, False])
def test_z_is_no_average(train_mode: bool, baked: Bake) -> None:
    """z of a schedule-free optimizer is where plain steps lead: never baked, neither as the average nor as raw weights."""
    state = {0: {"z": torch.full((2, 2), 9.0), "exp_avg_sq": torch.ones(2, 2)}}
    group = {"params": [0], "betas": (0.5, 0.999), "weight_sum": 3.0, "lr_max": 0.1, "k": 500, "train_mode": train_mode, "weight_lr_power": 2.0}
    content = {"model": {"w": torch.full((2, 2), 1.0)}, "optimizer": {"state": state, "param_groups": [group]}}
    average = baked(content)[1]["w"]
    assert not np.any(average == 9.0)
    assert np.all(average == (1.0 / 0.5 + (1 - 1 / 0.5) * 9.0 if train_mode else 1.0))
    if train_mode:
        assert np.all(baked(content, choice="raw")[1]["w"] == 1.0)


@pytest.mark.parametrize("layout", ["timm", "averaged", "ema", "lightning", "mmengine"])
def test_a_layer_called_ema_keeps_its_name(layout: str, baked: Bake) -> None:
    """Efficient multi-scale attention and MEGA have layers called ema: they are averaged with the others, under their own names."""
    raw = {"blocks.0.ema.conv.weight": torch.full((2,), 2.0), "ema.damping_factor": torch.full((2,), 2.0), "shadow": torch.full((1,), 2.0)}
    average = {name: torch.full_like(tensor, 0.5) for name, tensor in raw.items()}
    wrapped = {f"module.{name}": tensor for name, tensor in raw.items()}
    content: dict[str, object] = {
        "timm": {"state_dict": raw, "state_dict_ema": average},
        "averaged": {"model": raw, "swa": {"n_averaged": torch.tensor(5), **{f"module.{name}": tensor for name, tensor in average.items()}}},
        "ema": {"model": raw, "ema": average},
        "lightning": {"state_dict": average, "current_model_state": raw, "averaging_state": {"n_averaged": torch.tensor(7)}},
        "mmengine": {
            "meta": {"mmengine_version": "0.10.7"},
            "message_hub": {},
            "state_dict": average,
            "ema_state_dict": {"steps": torch.tensor(300), **wrapped},
        },
    }[layout]
    arrays = baked(content)[1]
    assert set(arrays) == set(raw)
    assert all(np.all(array == 0.5) for array in arrays.values())
    assert all(np.all(array == 2.0) for array in baked(content, choice="raw")[1].values())


def test_a_model_whose_parts_have_the_names_of_averages(read: Read, baked: Bake) -> None:
    """A bare state dict of a model with parts called ema_model, teacher, shadow_params and encoder_k is one set of weights."""
    names = ("ema_model.weight", "teacher.weight", "student.weight", "shadow_params.weight", "encoder_k.weight", "online.weight", "model_ema.w")
    state = {name: torch.full((2,), float(index)) for index, name in enumerate(names)}
    for content in (state, {"state_dict": state}, {"model": state, "ema": None}):
        assert read(content).candidates == ()
        arrays = baked(content, choice="raw")[1]
        assert {name: float(array[0]) for name, array in arrays.items()} == {name: float(tensor[0]) for name, tensor in state.items()}


@pytest.mark.parametrize("nothing", [None, {}, [], (), "", 0, False, {"shadow": None}, {"module": {}}, {"shadow_params": []}, {"n_averaged": 0}])
@pytest.mark.parametrize(
    "key", ["ema", "model_ema", "state_dict_ema", "ema_state_dict", "shadow", "ema_model", "ema_state", "swa_model", "teacher", "extra_state"]
)
def test_keys_that_are_there_and_hold_nothing(key: str, nothing: object, model: nn.Module, read: Read) -> None:
    """A key without weights is no average, and the raw weights are read as if it were not there."""
    for raw_key in ("model", "state_dict"):
        reading = read({raw_key: model.state_dict(), key: nothing})
        assert (reading.candidates, reading.raw_at, reading.raw_num_tensors) == ((), raw_key, 6)
