"""`factory = "auto"`: the model is built again with the arguments of its training, and its ONNX file computes what the trainer's average does."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from exporter.config import BakeConfig, Config
from exporter.workspace import Workspace

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

CONFIG = """
checkpoint = "{checkpoint}"

[model]
factory = "auto"

[[model.inputs]]
name = "image"
shape = {shape}
"""


@pytest.fixture
def exported(run_cli: Callable[..., object], tmp_path: Path) -> Callable[..., np.ndarray]:
    """Run `exporter export-onnx` on a checkpoint alone; return the first output of the ONNX file for an input."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

    def export(checkpoint: Path, x: torch.Tensor, *args: str) -> np.ndarray:
        (tmp_path / "exporter.toml").write_text(CONFIG.format(checkpoint=checkpoint, shape=list(x.shape)))
        done = run_cli("export-onnx", "-o", tmp_path / "out.onnx", *args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]

    return export


def images(*shape: int) -> torch.Tensor:
    """Return noise of a shape."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def trained(model: nn.Module, average: object, shape: tuple[int, ...]) -> torch.optim.Optimizer:
    """Take two steps and return the optimizer."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        model(images(*shape)).square().mean().backward()
        optimizer.step()
        (average.update if hasattr(average, "update") else average.update_parameters)(model)
    return optimizer


def assert_computes(average: nn.Module, x: torch.Tensor, output: np.ndarray) -> None:
    """Compare an output with that of the trainer's averaged model, which is not constant."""
    with torch.no_grad():
        wanted = average.float().eval()(x)
    wanted = (wanted[0] if isinstance(wanted, (tuple, list)) else wanted).numpy()
    assert wanted.std() > 0
    np.testing.assert_allclose(output, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_timm(tmp_path: Path, exported: Callable[..., np.ndarray]) -> None:
    """One channel, five classes, another pooling and another epsilon, as timm's training script writes them down."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    from timm.utils import CheckpointSaver, ModelEmaV3

    torch.manual_seed(0)
    args = argparse.Namespace(model="test_efficientnet", num_classes=5, in_chans=1, input_size=None, gp="max", bn_eps=0.01, bn_momentum=None)
    args.model_kwargs, args.model_ema_decay, args.model_ema_warmup, args.pretrained = {"act_layer": "relu"}, 0.5, False, False
    model = timm.create_model(args.model, num_classes=5, in_chans=1, global_pool=args.gp, bn_eps=args.bn_eps, **args.model_kwargs)
    average = ModelEmaV3(model, decay=args.model_ema_decay)
    optimizer = trained(model, average, (2, 1, 32, 32))
    saver = CheckpointSaver(model, optimizer, args=args, model_ema=average, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=1.0)
    x = images(2, 1, 32, 32)
    assert_computes(average.module, x, exported(tmp_path / "last.pth.tar", x))


def saved_by_references(model: nn.Module, args: argparse.Namespace, shape: tuple[int, ...], path: Path) -> nn.Module:
    """Train, and save what torchvision's reference scripts save; return the averaged model."""
    average = torch.optim.swa_utils.AveragedModel(model, avg_fn=lambda mean, value, _: 0.5 * mean + 0.5 * value, use_buffers=True)
    optimizer = trained(model, average, shape)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict(), "epoch": 0, "args": args}
    torch.save({**content, "model_ema": average.state_dict()}, path)
    return average.module


def reference_arguments(model: str, weights: str | None = None) -> argparse.Namespace:
    """Return those of the reference scripts' arguments that matter here."""
    averaging = {"model_ema_decay": 0.5, "model_ema_steps": 1, "world_size": 1, "batch_size": 2, "epochs": 2}
    return argparse.Namespace(model=model, weights=weights, data_path="images", **averaging)


def test_torchvision(tmp_path: Path, exported: Callable[..., np.ndarray]) -> None:
    """The number of classes, which the arguments lack, comes from the shapes of the weights."""
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")

    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=6)
    average = saved_by_references(model, reference_arguments("resnet18"), (2, 3, 32, 32), tmp_path / "checkpoint.pth")
    x = images(2, 3, 32, 32)
    assert_computes(average, x, exported(tmp_path / "checkpoint.pth", x, "--allow-cold"))


@pytest.mark.parametrize("weights", [None, "IMAGENET1K_V1"], ids=["from scratch", "from published weights"])
def test_what_no_tensor_of_torchvision_shows(weights: str | None, tmp_path: Path) -> None:
    """A GoogLeNet that began from published weights scales its input; with its auxiliary heads or without, the weights load strictly."""
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")

    torch.manual_seed(0)
    model = torchvision.models.googlenet(num_classes=6, aux_logits=False, transform_input=weights is not None, init_weights=False)
    path = tmp_path / "checkpoint.pth"
    average = saved_by_references(model, reference_arguments("googlenet", weights), (2, 3, 64, 64), path)
    network = Workspace(Config(checkpoint=path, weights=BakeConfig(allow_cold=True)), folder=tmp_path).module()
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        assert_computes(average, x, network(x).numpy())


def test_ultralytics(trained_yolo: object, exported: Callable[..., np.ndarray]) -> None:
    """The network of the file that the checkpoint names, with its four classes, from the trainer's own file."""
    from ultralytics.nn.tasks import DetectionModel

    average = DetectionModel("yolov8n.yaml", nc=4, verbose=False)
    average.load_state_dict(trained_yolo.average)
    x = images(2, 3, 64, 64)
    assert_computes(average, x, exported(trained_yolo.middle, x))
