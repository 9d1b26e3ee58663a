"""Checkpoints written by the training libraries themselves are read without them and baked to their own values."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from exporter.artifacts import Checkpoint
from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.tensors import read_tensor
from exporter.weights import bake, read_layout

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]


def bits(tensor: torch.Tensor) -> bytes:
    """Return a tensor's bytes in row-major order."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_baked(checkpoint: Checkpoint, output: Path, wanted: dict[str, torch.Tensor], **settings: object) -> None:
    """Bake, and compare every tensor with ``wanted`` bit for bit."""
    weights = bake(checkpoint, BakeConfig(**settings), output)
    baked = open_checkpoint(weights.path).root
    assert set(baked) == set(wanted)
    for name, tensor in wanted.items():
        assert tuple(tensor.shape) == baked[name].shape
        assert read_tensor(baked[name]).tobytes() == bits(tensor), name


def without(library: str, path: Path, repository: Path) -> list[str]:
    """Read the layout in a process of its own; return which of the libraries were imported."""
    code = (
        "import sys; from pathlib import Path; from exporter.checkpoint import open_checkpoint; from exporter.weights import read_layout\n"
        f"assert read_layout(open_checkpoint(Path({str(path)!r}))).candidates\n"
        f"print(*[name for name in ('torch', {library!r}) if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository, check=True)
    return done.stdout.split()


def test_timm_checkpoint_saver(tmp_path: Path, repository: Path) -> None:
    """timm's own saver with ModelEmaV3: layout, model, decay, and the values of its EMA module."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    from timm.utils import CheckpointSaver, ModelEmaV3

    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=4)
    ema = ModelEmaV3(model, decay=0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        model(torch.randn(2, 3, 32, 32)).sum().backward()
        optimizer.step()
        ema.update(model)
    args = argparse.Namespace(model="resnet10t", model_ema_decay=0.9, model_ema_warmup=False)
    saver = CheckpointSaver(model, optimizer, args=args, model_ema=ema, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=1.0)
    path = tmp_path / "last.pth.tar"
    checkpoint = open_checkpoint(path)
    reading = read_layout(checkpoint)
    assert (reading.layout, reading.model, reading.candidates[0].decay) == ("timm", "timm:resnet10t", 0.9)
    assert not checkpoint.calls
    wanted = dict(ema.module.state_dict())
    wanted |= {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_floating_point()}
    assert_baked(checkpoint, tmp_path / "out.safetensors", wanted)
    assert without("timm", path, repository) == []


def test_torchvision_references(tmp_path: Path, repository: Path) -> None:
    """What references/classification/train.py writes: its ExponentialMovingAverage and its dict, arguments included."""
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")

    class ExponentialMovingAverage(torch.optim.swa_utils.AveragedModel):
        """The class of references/classification/utils.py."""

        def __init__(self, model: nn.Module, decay: float, device: str = "cpu") -> None:
            super().__init__(model, device, lambda average, value, _: decay * average + (1 - decay) * value, use_buffers=True)

    torch.manual_seed(0)
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=4)
    args = argparse.Namespace(model="shufflenet_v2_x0_5", model_ema_decay=0.9, model_ema_steps=32, world_size=1, batch_size=8, epochs=100)
    used = 1 - min(1.0, (1.0 - args.model_ema_decay) * args.world_size * args.batch_size * args.model_ema_steps / args.epochs)
    ema = ExponentialMovingAverage(model, used)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    for _ in range(4):
        model(torch.randn(2, 3, 32, 32)).sum().backward()
        optimizer.step()
        ema.update_parameters(model)
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict(), "epoch": 0, "args": args}
    path = tmp_path / "checkpoint.pth"
    torch.save({**content, "model_ema": ema.state_dict()}, path)
    checkpoint = open_checkpoint(path)
    reading = read_layout(checkpoint)
    (candidate,) = reading.candidates
    assert (reading.layout, reading.model, candidate.updates) == ("torchvision", "torchvision:shufflenet_v2_x0_5", 4)
    assert candidate.decay == pytest.approx(used)
    wanted = dict(ema.module.state_dict())
    wanted |= {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_floating_point()}
    assert_baked(checkpoint, tmp_path / "out.safetensors", wanted, allow_cold=True)
    assert without("torchvision", path, repository) == []
