"""What tests of several libraries use: a YOLO that ultralytics' own trainer trained."""

from __future__ import annotations

import atexit
import copy
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

# ultralytics writes its settings as it is imported: processes that test side by side get a folder each.
os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="yolo-")
os.environ["YOLO_OFFLINE"] = "true"
atexit.register(shutil.rmtree, os.environ["YOLO_CONFIG_DIR"], ignore_errors=True)

UPDATES = 5000
"""Where the counter of the average begins: with a fresh one the average follows the raw weights so closely that it equals them."""


@dataclass(frozen=True)
class TrainedYolo:
    """Files of one training.

    Attributes:
        middle: ``best.pt`` as the trainer wrote it after an epoch.
        best: the same at the end, stripped by the trainer.
        average: what the trainer's average held when ``middle`` was written, in half precision as it is saved.
        updates: its counter then.
    """

    middle: Path
    best: Path
    average: dict[str, torch.Tensor]
    updates: int


@pytest.fixture(scope="session")
def trained_yolo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedYolo]:
    """Train a small YOLO with four classes for one epoch of two steps; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("yolo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLO_CONFIG_DIR", str(folder / "config"))
        patch.setenv("YOLO_OFFLINE", "true")
        patch.chdir(folder)
        yield _train(folder)


def _train(folder: Path) -> TrainedYolo:
    pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    from PIL import Image
    from ultralytics import YOLO

    random = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for index in range(4):
        Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"images/{index}.png")
        (folder / f"labels/{index}.txt").write_text("1 .5 .5 .4 .4\n")
    (folder / "data.yaml").write_text(f"path: {folder}\ntrain: images\nval: images\nnames: [a, b, c, d]\n")
    seen: list[tuple[dict[str, torch.Tensor], int]] = []

    def begin(trainer: object) -> None:
        trainer.ema.updates = UPDATES

    def keep(trainer: object) -> None:
        shutil.copy(trainer.best, folder / "middle.pt")
        seen.append((copy.deepcopy(trainer.ema.ema).half().state_dict(), trainer.ema.updates))

    network = YOLO("yolov8n.yaml", verbose=False)
    network.add_callback("on_train_start", begin)
    network.add_callback("on_model_save", keep)
    options = {"epochs": 1, "imgsz": 32, "batch": 2, "workers": 0, "device": "cpu", "plots": False, "val": False, "verbose": False}
    network.train(data=str(folder / "data.yaml"), project=str(folder / "runs"), name="one", **options)
    average, updates = seen[-1]
    return TrainedYolo(folder / "middle.pt", Path(network.trainer.best), average, updates)
