"""Folders of DeepSpeed: the model states of ZeRO 1 and 2 are read; weights that are shared out are refused by the kind of sharing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from exporter.checkpoint import open_checkpoint
from exporter.errors import CheckpointError
from exporter.tensors import checkpoint_digest
from exporter.weights import read_layout


def states(model: nn.Module, **client_state: object) -> dict[str, object]:
    """Return what DeepSpeed 0.19 writes to ``mp_rank_00_model_states.pt`` with ZeRO 1."""
    return {
        "module": model.state_dict(),
        "buffer_names": ["1.running_mean", "1.running_var", "1.num_batches_tracked"],
        "optimizer": None,
        "param_shapes": [{name: value.shape for name, value in model.named_parameters()}],
        "frozen_param_shapes": None,
        "shared_params": {},
        "frozen_param_fragments": None,
        "lr_scheduler": None,
        "data_sampler": None,
        "random_ltd": None,
        "sparse_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": 3,
        "global_samples": 6,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "ds_config": {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 1}},
        "ds_version": "0.19.8",
        **client_state,
    }


@pytest.fixture
def model() -> nn.Module:
    """A convolution and a BatchNorm."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3))


@pytest.fixture
def folder(model: nn.Module, tmp_path: Path) -> Path:
    """A folder with one tag, as DeepSpeed's engine leaves it."""
    average = AveragedModel(model)
    average.update_parameters(model)
    tag = tmp_path / "run" / "global_step3"
    tag.mkdir(parents=True)
    torch.save(states(model, ema=average.state_dict()), tag / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {"state": {}}}, tag / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (tmp_path / "run" / "latest").write_text("global_step3")
    (tmp_path / "run" / "zero_to_fp32.py").touch()
    return tmp_path / "run"


def test_the_tag_that_latest_names_is_read(folder: Path) -> None:
    """The folder of all tags and that of one tag hold the same tree; `module` is a key; the average is what the trainer added."""
    for path in (folder, folder / "global_step3"):
        checkpoint = open_checkpoint(path)
        assert (checkpoint.container, checkpoint.path, checkpoint.calls) == ("DeepSpeed", path, {})
        reading = read_layout(checkpoint)
        assert (reading.layout, reading.raw_at, reading.raw_num_tensors, reading.raw_remark) == ("deepspeed", "module", 6, "")
        assert [(candidate.name, candidate.updates, candidate.num_tensors) for candidate in reading.candidates] == [("ema", 1, 6)]


def test_16_bit_weights_say_where_the_masters_are(model: nn.Module, folder: Path) -> None:
    """With 16-bit training the file holds 16-bit weights, which is said; they are not replaced by something else."""
    torch.save(states(model.bfloat16()), folder / "global_step3" / "mp_rank_00_model_states.pt")
    reading = read_layout(open_checkpoint(folder))
    assert "masters" in reading.raw_remark
    assert "bfloat16" in reading.raw_dtypes


def test_the_digest_covers_the_choice_of_the_tag(folder: Path) -> None:
    """Another tag in `latest`, and other weights, are another checkpoint."""
    before = checkpoint_digest(open_checkpoint(folder))
    (folder / "global_step3").rename(folder / "global_step4")
    (folder / "latest").write_text("global_step4\n")
    assert checkpoint_digest(open_checkpoint(folder)) != before


def _write(name: str, *, remove: bool = True) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        if remove:
            (folder / "global_step3" / "mp_rank_00_model_states.pt").unlink()
        (folder / "global_step3" / name).touch()

    return change


def _linked_tag(folder: Path) -> None:
    (folder / "global_step3").rename(folder.parent / "elsewhere")
    (folder / "global_step3").symlink_to(folder.parent / "elsewhere")


def _linked_file(folder: Path) -> None:
    path = folder / "global_step3" / "mp_rank_00_model_states.pt"
    path.rename(folder.parent / "elsewhere.pt")
    path.symlink_to(folder.parent / "elsewhere.pt")


REFUSED = {
    "ZeRO 3": (_write("zero_pp_rank_0_mp_rank_00_model_states.pt"), "E118", "ZeRO 3"),
    "pipeline": (_write("layer_01-model_00-model_states.pt"), "E118", "pipeline"),
    "model parallel": (_write("mp_rank_01_model_states.pt", remove=False), "E118", "model parallelism: 2"),
    "experts": (_write("layer_0_expert_1_mp_rank_00_model_states.pt", remove=False), "E118", "experts"),
    "incomplete": (_write("zero_pp_rank_0_mp_rank_00_optim_states.pt"), "E118", "no mp_rank_00"),
    "a tag that is not there": (lambda folder: (folder / "latest").write_text("global_step9"), "E118", "global_step9"),
    "a tag outside": (lambda folder: (folder / "latest").write_text("../run/global_step3"), "E116", "../run"),
    "the parent as tag": (lambda folder: (folder / "latest").write_text(".."), "E116", "'..'"),
    "an empty tag": (lambda folder: (folder / "latest").write_text("\n"), "E116", "''"),
    "a long tag": (lambda folder: (folder / "latest").write_text("x" * 5000), "E116", "xxx"),
    "a tag with an escape sequence": (lambda folder: (folder / "latest").write_text("\x1b[2J"), "E116", "x1b"),
    "a linked tag": (_linked_tag, "E116", "symbolic link"),
    "a linked file": (_linked_file, "E116", "symbolic link"),
    "a cut file": (
        lambda folder: (folder / "global_step3" / "mp_rank_00_model_states.pt").write_bytes(b"PK\x03\x04" + bytes(99)),
        "E107",
        "directory",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_whole_or_leads_elsewhere_is_refused(case: str, folder: Path) -> None:
    """The refusal says how the weights are shared out, or what the name leads to."""
    change, code, words = REFUSED[case]
    change(folder)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(folder)
    assert refused.value.code == code
    assert words in refused.value.facts["found"]
