"""What is baked is read by the libraries' own loaders, strictly, and computes what the library's own average computes: bit for bit."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.peers.test_averages import lightning_trainer, snapshot

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

COUNTER = "num_batches_tracked"


def bake_to(path: Path, output: Path, *options: str) -> dict[str, object]:
    """Run ``exporter bake-ema`` as a user does and return what it says."""
    code = "import sys; from exporter.cli.app import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "bake-ema", str(path), "-o", str(output), "--json", "--quiet", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=path.parent)
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


def assert_computes_the_same(loaded: nn.Module, wanted: nn.Module, *inputs: torch.Tensor) -> None:
    """Compare two networks: every tensor but the counters, and what they return, in every bit."""
    for name, tensor in wanted.state_dict().items():
        assert name.endswith(COUNTER) or torch.equal(loaded.state_dict()[name], tensor), name
    with torch.no_grad():
        one, other = (net.eval()(*inputs) for net in (loaded, wanted))
    flat = [torch.utils._pytree.tree_leaves(value) for value in (one, other)]
    tensors = [(a, b) for a, b in zip(*flat, strict=True) if isinstance(a, torch.Tensor)]
    assert tensors
    assert all(torch.equal(a, b) for a, b in tensors)


def train(model: nn.Module, ema: object, *, size: int = 32) -> torch.optim.Optimizer:
    """Take some steps with random images and update the average."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        model(torch.randn(4, 3, size, size)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        update = getattr(ema, "update_parameters", None) or ema.update
        update(model)
    return optimizer


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_timm_reads_it(tmp_path: Path, suffix: str) -> None:
    """``load_checkpoint`` and ``load_state_dict(use_ema=True)`` take the torch file and the safetensors file."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    from timm.models import load_checkpoint, load_state_dict
    from timm.utils import CheckpointSaver, ModelEmaV3

    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=4)
    ema = ModelEmaV3(model, decay=0.9)
    optimizer = train(model, ema)
    args = argparse.Namespace(model="resnet10t", model_ema_decay=0.9, model_ema_warmup=False)
    saver = CheckpointSaver(model, optimizer, args=args, model_ema=ema, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=1.0)
    output = tmp_path / f"out{suffix}"
    bake_to(tmp_path / "last.pth.tar", output, *(["--under", "auto"] if suffix == ".pt" else []))
    fresh = timm.create_model("resnet10t", num_classes=4)
    load_checkpoint(fresh, str(output), strict=True)
    assert_computes_the_same(fresh, ema.module, torch.randn(2, 3, 32, 32))
    again = timm.create_model("resnet10t", num_classes=4)
    again.load_state_dict(load_state_dict(str(output), use_ema=True), strict=True)
    assert_computes_the_same(again, ema.module, torch.randn(2, 3, 32, 32))


def test_torchvision_references_read_it(tmp_path: Path) -> None:
    """The reference scripts take ``checkpoint["model"]`` into the model, strictly."""
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    torch.manual_seed(0)
    model = models.resnet18(num_classes=4)
    decay = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=decay, use_buffers=True)
    optimizer = train(model, ema)
    args = argparse.Namespace(model="resnet18", model_ema=True, model_ema_decay=0.9, model_ema_steps=32, world_size=1, batch_size=1, epochs=100)
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "model_ema": ema.state_dict(), "epoch": 1, "args": args}
    torch.save(content, tmp_path / "checkpoint.pth")
    bake_to(tmp_path / "checkpoint.pth", tmp_path / "out.pth", "--under", "auto", "--allow-cold")
    fresh = models.resnet18(num_classes=4)
    fresh.load_state_dict(torch.load(tmp_path / "out.pth", map_location="cpu", weights_only=True)["model"])
    assert_computes_the_same(fresh, ema.module, torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("options", [(), ("--strip-prefix", "net.")], ids=["own names", "prefix put back"])
def test_lightning_reads_it(tmp_path: Path, options: tuple[str, ...]) -> None:
    """``load_from_checkpoint`` takes the file into the LightningModule, strictly."""
    pytest.importorskip("lightning", reason="lightning is not installed")
    from lightning.pytorch.callbacks import Callback, EMAWeightAveraging

    averaging = EMAWeightAveraging(decay=0.5)
    seen: dict[str, torch.Tensor] = {}

    class Keeper(Callback):
        def on_train_epoch_end(self, trainer: object, module: nn.Module) -> None:
            trainer.save_checkpoint(tmp_path / "middle.ckpt")
            seen.update(snapshot(averaging._average_model.module.state_dict()))

    trainer, module, data = lightning_trainer(tmp_path, [averaging, Keeper()], 2)
    trainer.fit(module, data)
    bake_to(tmp_path / "middle.ckpt", tmp_path / "out.pt", "--under", "auto", "--allow-cold", *options)
    fresh = type(module).load_from_checkpoint(tmp_path / "out.pt", map_location="cpu", strict=True, weights_only=True)
    wanted = type(module)()
    wanted.load_state_dict(seen)
    assert_computes_the_same(fresh.net, wanted.net, torch.randn(5, 3))


def test_ultralytics_takes_the_state_dict(tmp_path: Path) -> None:
    """``YOLO(yaml).model.load_state_dict`` takes the file strictly, and ``DetectionModel.load`` what was so loaded."""
    ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils.torch_utils import ModelEMA

    torch.manual_seed(0)
    model = DetectionModel("yolov8n.yaml", verbose=False)
    ema = ModelEMA(model, updates=5000)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape))
    ema.update(model)
    torch.save({"epoch": 1, "model": None, "ema": ema.ema.half(), "updates": ema.updates}, tmp_path / "last.pt")
    wanted = ema.ema.float()
    bake_to(tmp_path / "last.pt", tmp_path / "out.pt", "--under", "auto", "--dtype", "float32")
    fresh = ultralytics.YOLO("yolov8n.yaml", verbose=False).model
    fresh.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True), strict=True)
    image = torch.randn(1, 3, 64, 64)
    assert_computes_the_same(fresh, wanted, image)
    other = DetectionModel("yolov8n.yaml", verbose=False)
    other.load({"model": fresh})
    assert_computes_the_same(other, wanted, image)
