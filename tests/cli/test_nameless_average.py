"""A list without names on the command line: the model that is named gives the order."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from exporter.checkpoint import open_checkpoint
from exporter.tensors import read_tensor

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_model_names_the_tensors_of_a_list(tmp_path: Path, run_cli: RunCli) -> None:
    """Without a model exit 4 and the remedy; with one the list is baked under its names; with another it does not fit."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    shadow = [torch.full_like(parameter, 0.25) for parameter in model.parameters()]
    content = {"model": model.state_dict(), "ema": {"decay": 0.9, "num_updates": None, "collected_params": None, "shadow_params": shadow}}
    torch.save(content, tmp_path / "made.pt")
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef build(width=2):\n    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))\n"
    )
    refused = run_cli("bake-ema", "made.pt", "-o", "out.safetensors")
    assert refused.returncode == 4
    assert "E219" in refused.stderr
    assert "factory" in refused.stderr
    done = run_cli("bake-ema", "made.pt", "-o", "out.safetensors", "--model", "net.py:build", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["summary"]["choice"] == "ema:ema"
    baked = open_checkpoint(tmp_path / "out.safetensors").root
    assert set(baked) == set(model.state_dict())
    assert (read_tensor(baked["0.weight"]) == 0.25).all()
    assert (read_tensor(baked["1.running_var"]) == 1.0).all()
    (tmp_path / "net.py").write_text("from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))\n")
    other = run_cli("bake-ema", "made.pt", "-o", "out.safetensors", "--model", "net.py:build")
    assert other.returncode == 4
    assert "E220" in other.stderr
