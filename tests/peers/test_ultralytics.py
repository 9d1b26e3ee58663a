"""What ultralytics' own trainer writes, in the middle of training and at its end, read with and without the library at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import LayoutError
from exporter.tensors import read_tensor
from exporter.weights import bake, read_layout

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "ultralytics"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""
Alone = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def alone(tmp_path: Path, repository: Path) -> Alone:
    """Run code in an interpreter where neither ultralytics nor torch can be imported."""
    (tmp_path / "blocker").mkdir()
    (tmp_path / "blocker" / "sitecustomize.py").write_text(BLOCKER)
    path = os.pathsep.join([str(tmp_path / "blocker"), str(repository)])

    def run(code: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *map(str, args)]
        env = {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1"}
        return subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120)

    return run


EXPORTER = "import sys; from exporter.cli.app import main; sys.exit(main())"


def assert_equal(output: Path, wanted: dict[str, torch.Tensor]) -> None:
    """Compare a baked file with the trainer's own average, bit for bit."""
    baked = open_checkpoint(output).root
    assert set(baked) == set(wanted)
    for name, tensor in wanted.items():
        assert read_tensor(baked[name]).tobytes() == tensor.numpy().tobytes(), name


def test_in_the_middle_of_training(trained_yolo: object, tmp_path: Path) -> None:
    """The average is `ema`, half precision, with the trainer's counter and its own values; the raw weights are not in the file."""
    checkpoint = open_checkpoint(trained_yolo.middle)
    reading = read_layout(checkpoint)
    (candidate,) = reading.candidates
    assert (reading.layout, reading.raw_at, candidate.name, candidate.updates) == ("ultralytics", None, "ema", trained_yolo.updates)
    assert (reading.model, reading.model_arguments["nc"]) == ("ultralytics:yolov8n.yaml", 4)
    assert not checkpoint.calls
    bake(checkpoint, BakeConfig(), tmp_path / "out.safetensors")
    assert_equal(tmp_path / "out.safetensors", trained_yolo.average)


def test_stripped_at_the_end(trained_yolo: object, tmp_path: Path) -> None:
    """At the end the average is `model`: said to be undecidable, and raw gives it."""
    checkpoint = open_checkpoint(trained_yolo.best)
    reading = read_layout(checkpoint)
    assert (reading.layout, reading.candidates, reading.model) == ("ultralytics", (), "ultralytics:yolov8n.yaml")
    assert "already" in reading.raw_remark
    with pytest.raises(LayoutError, match="has none"):
        bake(checkpoint, BakeConfig(), tmp_path / "out.safetensors")
    bake(checkpoint, BakeConfig(choice="raw"), tmp_path / "out.safetensors")
    assert_equal(tmp_path / "out.safetensors", trained_yolo.average)


@pytest.mark.parametrize(("file", "choice"), [("middle", "ema"), ("best", "raw")])
def test_without_ultralytics_and_torch(file: str, choice: str, trained_yolo: object, alone: Alone, tmp_path: Path) -> None:
    """Where neither can be imported, inspect shows the file and bake-ema gives the trainer's values."""
    for name in ("ultralytics", "torch"):
        assert "ModuleNotFoundError" in alone(f"import {name}").stderr
    path = getattr(trained_yolo, file)
    shown = alone(EXPORTER, "inspect", path, "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["layout"]["layout"] == "ultralytics"
    done = alone(EXPORTER, "bake-ema", path, "--weights", choice, "-o", tmp_path / "out.safetensors")
    assert done.returncode == 0, done.stderr
    assert_equal(tmp_path / "out.safetensors", trained_yolo.average)
