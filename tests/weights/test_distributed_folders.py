"""Averages in folders of torch.distributed.checkpoint: found by the layouts that a single file has, and baked from their shards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from exporter.checkpoint import open_checkpoint
from exporter.tensors import checkpoint_digest
from exporter.weights import read_layout
from tests.checkpoint.distributed import rewrite, save, save_shards


@pytest.fixture
def content(model: nn.Module, other_model: nn.Module) -> dict[str, object]:
    """What a trainer saves: model, average with its counter, optimizer."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.update_parameters(model)
    average.update_parameters(other_model)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 2, 5, 5)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "ema": average.state_dict(), "optim": get_optimizer_state_dict(model, optimizer), "step": 3}


@pytest.mark.parametrize("flat", [False, True], ids=["a dict of dicts", "one flat dict"])
def test_the_average_and_not_the_optimizer(
    flat: bool, content: dict[str, object], tmp_path: Path, baked: Callable[..., tuple[object, dict[str, object]]]
) -> None:
    """`ema.module.` with `n_averaged` is torch's average; `exp_avg` of the optimizer is no weight, whether names are nested or flat."""
    folder = save(content, tmp_path / "saved")
    if flat:
        rewrite(folder, lambda metadata: setattr(metadata, "planner_data", None))
    reading = read_layout(open_checkpoint(folder))
    (candidate,) = reading.candidates
    assert (reading.layout, reading.raw_at, candidate.name, candidate.updates, candidate.num_tensors) == (
        "torch-averaged-model",
        "model",
        "ema",
        2,
        6,
    )
    assert flat or {slot.slot for slot in reading.optimizer_slots} == {"exp_avg", "exp_avg_sq", "step"}
    _, arrays = baked(folder)
    average = {name.removeprefix("module."): value for name, value in content["ema"].items() if name != "n_averaged"}
    assert set(arrays) == set(average)
    for name, value in average.items():
        wanted = value if value.is_floating_point() else content["model"][name]
        assert arrays[name].tobytes() == wanted.numpy().tobytes()


def test_a_flat_state_dict_alone_keeps_its_names(tmp_path: Path) -> None:
    """Names are split only where an optimizer or an average stands beside the model; a model's own first step is part of its names."""
    folder = save({"model.0.weight": torch.ones(2), "head.weight": torch.ones(1)}, tmp_path / "saved")
    assert set(open_checkpoint(folder).root) == {"model.0.weight", "head.weight"}


def test_sharded_weights_are_baked_whole(tmp_path: Path, baked: Callable[..., tuple[object, dict[str, object]]]) -> None:
    """A bake writes the whole tensor, whatever the shards."""
    table = torch.arange(60.0).reshape(6, 10)
    folder = save_shards("head.weight", table, [((0, 0), (4, 3)), ((0, 3), (4, 7)), ((4, 0), (2, 10))], tmp_path / "saved")
    _, arrays = baked(folder, choice="raw")
    assert arrays["head.weight"].tobytes() == table.numpy().tobytes()


def test_the_digest_covers_every_file(content: dict[str, object], tmp_path: Path) -> None:
    """A change in any file is another checkpoint; the place of the folder is not part of it."""
    folder = save(content, tmp_path / "saved")
    before = checkpoint_digest(open_checkpoint(folder))
    shutil.copytree(folder, tmp_path / "copy")
    assert checkpoint_digest(open_checkpoint(tmp_path / "copy")) == before
    storage = open_checkpoint(folder).root["model"]["0.weight"].storage
    content_bytes = bytearray(storage.path.read_bytes())
    content_bytes[storage.offset] ^= 1
    storage.path.write_bytes(content_bytes)
    assert checkpoint_digest(open_checkpoint(folder)) != before
