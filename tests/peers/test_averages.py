"""Averages written by the libraries that make them, baked to the values that the library's own API gives: bit for bit, counters apart."""

from __future__ import annotations

import copy
import types
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from exporter.artifacts import TensorSpec
from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.tensors import read_tensor
from exporter.weights import bake, read_layout

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

State = Mapping[str, torch.Tensor]


def network(seed: int = 0) -> nn.Sequential:
    """Return a small network with BatchNorm, whose weights are the seed's."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def train(model: nn.Module) -> None:
    """Take one step."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(8, 3)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def snapshot(state: State) -> dict[str, torch.Tensor]:
    """Return a copy that later training does not change."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def assert_baked(path: Path, wanted: State, counters: State, *, order: tuple[TensorSpec, ...] | None = None, **settings: object) -> None:
    """Bake, and compare: floating tensors with ``wanted``, integer counters with ``counters``, as docs/ema.md states."""
    output = path.with_suffix(".safetensors")
    bake(open_checkpoint(path), BakeConfig(**settings), output, parameter_order=order)
    baked = open_checkpoint(output).root
    assert set(baked) == set(wanted)
    for name, tensor in wanted.items():
        expected = tensor if tensor.is_floating_point() else counters[name]
        assert read_tensor(baked[name]).tobytes() == expected.detach().contiguous().numpy().tobytes(), name
    assert any(not torch.equal(tensor, counters[name]) for name, tensor in wanted.items()) or settings.get("choice") == "raw", "nothing to tell apart"


def lightning_trainer(folder: Path, callbacks: list[object], max_epochs: int) -> tuple[object, object, object]:
    """Return a trainer, a module around the network, and data."""
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader, TensorDataset

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: tuple[torch.Tensor], _: int) -> torch.Tensor:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = DataLoader(TensorDataset(torch.randn(16, 3, generator=torch.Generator().manual_seed(0))), batch_size=4)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "default_root_dir": folder}
    return Trainer(max_epochs=max_epochs, callbacks=callbacks, **options), Module(), data


def test_lightning_weight_averaging(tmp_path: Path) -> None:
    """While it trains ``state_dict`` is the average and ``current_model_state`` raw; after fit both are the average."""
    pytest.importorskip("lightning", reason="lightning is not installed")
    from lightning.pytorch.callbacks import Callback, EMAWeightAveraging

    averaging = EMAWeightAveraging(decay=0.5)
    seen: dict[str, dict[str, torch.Tensor]] = {}

    class Keeper(Callback):
        def on_train_epoch_end(self, trainer: object, module: nn.Module) -> None:
            trainer.save_checkpoint(tmp_path / "middle.ckpt")
            seen["raw"] = snapshot(module.state_dict())
            seen["average"] = snapshot(averaging._average_model.module.state_dict())

    trainer, module, data = lightning_trainer(tmp_path, [averaging, Keeper()], 2)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    reading = read_layout(open_checkpoint(tmp_path / "middle.ckpt"))
    assert (reading.layout, reading.raw_at, [c.name for c in reading.candidates]) == ("lightning", "current_model_state", ["state_dict"])
    assert reading.candidates[0].updates
    assert_baked(tmp_path / "middle.ckpt", seen["average"], seen["raw"])
    assert_baked(tmp_path / "middle.ckpt", seen["raw"], seen["raw"], choice="raw")
    own = {name.removeprefix("net."): tensor for name, tensor in seen["average"].items()}
    raw = {name.removeprefix("net."): tensor for name, tensor in seen["raw"].items()}
    assert_baked(tmp_path / "middle.ckpt", own, raw, strip_prefix="net.")
    after = read_layout(open_checkpoint(tmp_path / "after.ckpt"))
    assert (after.layout, after.raw_at) == ("lightning", None)
    bake(open_checkpoint(tmp_path / "after.ckpt"), BakeConfig(), tmp_path / "after.safetensors")
    baked = open_checkpoint(tmp_path / "after.safetensors").root
    for name, tensor in module.state_dict().items():
        assert read_tensor(baked[name]).tobytes() == tensor.numpy().tobytes()


def test_lightning_stochastic_weight_averaging(tmp_path: Path) -> None:
    """In the middle of training the average stands in the callback's state, and ``state_dict`` is raw."""
    pytest.importorskip("lightning", reason="lightning is not installed")
    from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging

    averaging = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1)
    seen: dict[str, dict[str, torch.Tensor]] = {}

    class Keeper(Callback):
        def on_train_epoch_end(self, trainer: object, module: nn.Module) -> None:
            if trainer.current_epoch == 3:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")
                seen["raw"] = snapshot(module.state_dict())
                seen["average"] = snapshot(averaging._average_model.state_dict())

    trainer, module, data = lightning_trainer(tmp_path, [averaging, Keeper()], 6)
    trainer.fit(module, data)
    reading = read_layout(open_checkpoint(tmp_path / "middle.ckpt"))
    assert (reading.layout, [c.name for c in reading.candidates]) == ("lightning", ["swa"])
    assert_baked(tmp_path / "middle.ckpt", seen["average"], seen["raw"])
    assert_baked(tmp_path / "middle.ckpt", seen["raw"], seen["raw"], choice="raw")


def test_mmengine(tmp_path: Path) -> None:
    """EMAHook in mmengine's own Runner swaps when it saves: its averaged model is what is baked, from the plain names."""
    pytest.importorskip("mmengine", reason="mmengine is not installed")
    from mmengine.hooks import EMAHook
    from mmengine.model import BaseModel
    from mmengine.runner import Runner
    from torch.utils.data import DataLoader, TensorDataset

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: torch.Tensor, mode: str = "tensor") -> object:
            return {"loss": self.net(x).square().mean()} if mode == "loss" else self.net(x)

    hook, model = EMAHook(momentum=0.1), Model()
    runner = Runner(
        model=model,
        work_dir=str(tmp_path / "work"),
        train_dataloader=DataLoader(TensorDataset(torch.randn(16, 3, generator=torch.Generator().manual_seed(0))), batch_size=4),
        train_cfg={"by_epoch": True, "max_epochs": 1},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1}},
        custom_hooks=[hook],
    )
    runner.train()
    path = tmp_path / "work" / "epoch_1.pth"
    wanted, raw = snapshot(hook.ema_model.module.state_dict()), snapshot(model.state_dict())
    reading = read_layout(open_checkpoint(path))
    assert (reading.layout, reading.candidates[0].name, reading.candidates[0].updates) == ("mmengine", "state_dict", 4)
    assert_baked(path, wanted, raw)
    assert_baked(path, raw, raw, choice="raw")


def order_of(model: nn.Module) -> tuple[TensorSpec, ...]:
    """Return name and shape of every parameter in the model's order."""
    return tuple(TensorSpec(name, tuple(parameter.shape), "float32") for name, parameter in model.named_parameters())


def test_torch_ema(tmp_path: Path) -> None:
    """The nameless list under the model's names equals what copy_to() puts into the model."""
    torch_ema = pytest.importorskip("torch_ema", reason="torch-ema is not installed")
    model = network()
    averaged = torch_ema.ExponentialMovingAverage(model.parameters(), decay=0.9)
    for _ in range(4):
        train(model)
        averaged.update()
    torch.save({"model": model.state_dict(), "ema": averaged.state_dict()}, tmp_path / "made.pt")
    raw = snapshot(model.state_dict())
    twin = copy.deepcopy(model)
    averaged.copy_to(twin.parameters())
    reading = read_layout(open_checkpoint(tmp_path / "made.pt"))
    assert (reading.layout, reading.needs_parameter_order, reading.candidates[0].updates) == ("shadow-params", True, 4)
    assert_baked(tmp_path / "made.pt", twin.state_dict(), raw, order=order_of(model), allow_cold=True)


def test_diffusers(tmp_path: Path) -> None:
    """EMAModel's list, likewise."""
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    from diffusers.training_utils import EMAModel

    model = network()
    averaged = EMAModel(model.parameters(), decay=0.999)
    for _ in range(4):
        train(model)
        averaged.step(model.parameters())
    torch.save({"model": model.state_dict(), "ema": averaged.state_dict()}, tmp_path / "made.pt")
    raw = snapshot(model.state_dict())
    twin = copy.deepcopy(model)
    averaged.copy_to(twin.parameters())
    reading = read_layout(open_checkpoint(tmp_path / "made.pt"))
    assert (reading.layout, reading.candidates[0].updates, reading.candidates[0].decay) == ("shadow-params", 4, 0.999)
    assert_baked(tmp_path / "made.pt", twin.state_dict(), raw, order=order_of(model), allow_cold=True)


@pytest.mark.parametrize("place", ["", "ema"], ids=["alone", "in a trainer's file"])
@pytest.mark.parametrize("online", [True, False], ids=["with the online model", "without"])
def test_ema_pytorch(place: str, online: bool, tmp_path: Path) -> None:
    """ema-pytorch's copy, as its own ema_model gives it; the trainer's file is laid out as denoising-diffusion does."""
    library = pytest.importorskip("ema_pytorch", reason="ema-pytorch is not installed")
    model = network()
    averaged = library.EMA(model, beta=0.9, update_after_step=0, update_every=1, include_online_model=online)
    for _ in range(6):
        train(model)
        averaged.update()
    raw = snapshot(model.state_dict())
    content = {"step": 6, "model": raw, "opt": {}, "scaler": None, "version": "1", "ema": averaged.state_dict()} if place else averaged.state_dict()
    torch.save(content, tmp_path / "model-1.pt")
    reading = read_layout(open_checkpoint(tmp_path / "model-1.pt"))
    assert (reading.layout, reading.candidates[0].name, reading.raw_at is None) == ("ema-pytorch", place or "ema_model", not (online or place))
    wanted = averaged.ema_model.state_dict()
    counters = raw if online or place else wanted
    output = tmp_path / "model-1.safetensors"
    bake(open_checkpoint(tmp_path / "model-1.pt"), BakeConfig(), output)
    for name, ref in open_checkpoint(output).root.items():
        expected = wanted[name] if wanted[name].is_floating_point() else counters[name]
        assert read_tensor(ref).tobytes() == expected.numpy().tobytes(), name
    assert not torch.equal(wanted["0.weight"], raw["0.weight"])


@pytest.mark.parametrize("buffers", ["copy", "update"])
def test_ignite(buffers: str, tmp_path: Path) -> None:
    """EMAHandler through ignite's own Checkpoint: its ema_model, whose copied buffers share their storage with the raw ones."""
    pytest.importorskip("ignite", reason="pytorch-ignite is not installed")
    from ignite.engine import Engine
    from ignite.handlers import Checkpoint, DiskSaver, EMAHandler

    model = network()
    handler = EMAHandler(model, momentum=0.1, handle_buffers=buffers)
    engine = Engine(lambda _, __: train(model))
    handler.attach(engine)
    engine.run(range(5), max_epochs=1)
    saver = Checkpoint({"model": model, "ema_model": handler.ema_model}, DiskSaver(tmp_path, require_empty=False), n_saved=1)
    saver(engine)
    (path,) = tmp_path.glob("*.pt")
    reading = read_layout(open_checkpoint(path))
    assert [c.name for c in reading.candidates] == ["ema_model"]
    assert_baked(path, handler.ema_model.state_dict(), model.state_dict())
    assert_baked(path, model.state_dict(), model.state_dict(), choice="raw")


def test_mmcv(tmp_path: Path) -> None:
    """mmcv 1's EMAHook and save_checkpoint: after an epoch the plain names are the average, the ``ema_`` buffers raw."""
    pytest.importorskip("mmcv", reason="mmcv is not installed")
    from mmcv.runner import save_checkpoint
    from mmcv.runner.hooks.ema import EMAHook

    model = network()
    runner = types.SimpleNamespace(model=model, iter=0)
    hook = EMAHook(momentum=0.1, warm_up=1)
    hook.before_run(runner)
    own = set(network().state_dict())
    for runner.iter in range(4):
        train(model)
        hook.after_train_iter(runner)
    raw = {name: tensor for name, tensor in snapshot(model.state_dict()).items() if name in own}
    hook.after_train_epoch(runner)  # swaps, before the checkpoint is written
    wanted = {name: tensor for name, tensor in snapshot(model.state_dict()).items() if name in own}
    save_checkpoint(model, str(tmp_path / "epoch_1.pth"), meta={"epoch": 1})
    assert read_layout(open_checkpoint(tmp_path / "epoch_1.pth")).layout == "mmcv"
    assert_baked(tmp_path / "epoch_1.pth", wanted, raw)
    assert_baked(tmp_path / "epoch_1.pth", raw, raw, choice="raw")


def test_the_folders_of_diffusers(tmp_path: Path) -> None:
    """EMAModel.save_pretrained beside the model's own folder: parameters as its own from_pretrained gives them, schedule from config.json."""
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    from diffusers import UNet2DModel
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,), "norm_num_groups": 4}
    model = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, add_attention=False, **blocks)
    averaged = EMAModel(model.parameters(), decay=0.9, model_cls=UNet2DModel, model_config=model.config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        model(torch.randn(1, 1, 8, 8), 1).sample.square().mean().backward()
        optimizer.step()
        averaged.step(model.parameters())
    model.save_pretrained(tmp_path / "checkpoint-4" / "unet")
    averaged.save_pretrained(tmp_path / "checkpoint-4" / "unet_ema")
    again = UNet2DModel.from_pretrained(tmp_path / "checkpoint-4" / "unet_ema")
    reading = read_layout(open_checkpoint(tmp_path / "checkpoint-4"))
    (candidate,) = reading.candidates
    assert (reading.layout, candidate.name, candidate.updates, candidate.decay) == ("diffusers", "unet_ema", 4, 0.9)
    raw = snapshot(model.state_dict())
    assert_baked(tmp_path / "checkpoint-4", again.state_dict(), raw, allow_cold=True)
    assert_baked(tmp_path / "checkpoint-4", raw, raw, choice="raw")


def test_ignite_in_a_file_of_its_own(tmp_path: Path) -> None:
    """ignite's Checkpoint writes an average alone under its name: taken by name, with the handler's own values."""
    pytest.importorskip("ignite", reason="pytorch-ignite is not installed")
    from ignite.engine import Engine
    from ignite.handlers import Checkpoint, DiskSaver, EMAHandler

    model = network()
    handler = EMAHandler(model, momentum=0.1)
    engine = Engine(lambda _, __: train(model))
    handler.attach(engine)
    engine.run(range(5), max_epochs=1)
    Checkpoint({"ema_model": handler.ema_model}, DiskSaver(tmp_path, require_empty=False))(engine)
    (path,) = tmp_path.glob("ema_model_*.pt")
    assert read_layout(open_checkpoint(path)).layout == "ignite"
    bake(open_checkpoint(path), BakeConfig(ema="ema_model"), tmp_path / "out.safetensors")
    baked = open_checkpoint(tmp_path / "out.safetensors").root
    for name, tensor in handler.ema_model.state_dict().items():
        assert read_tensor(baked[name]).tobytes() == tensor.numpy().tobytes(), name


@pytest.mark.parametrize("use_buffers", [False, True], ids=["buffers copied", "buffers averaged"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "compiled"])
def test_averaged_model(wrapped: bool, use_buffers: bool, tmp_path: Path) -> None:
    """torch's AveragedModel, also over a compiled model: the values of its module, under the model's own names."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = network()
    averaged = AveragedModel(torch.compile(model) if wrapped else model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=use_buffers)
    for _ in range(4):
        train(model)
        averaged.update_parameters(torch.compile(model) if wrapped else model)
    torch.save({"model": model.state_dict(), "ema": averaged.state_dict()}, tmp_path / "made.pt")
    wanted = {name.removeprefix("_orig_mod."): tensor for name, tensor in averaged.module.state_dict().items()}
    assert any("_orig_mod." in name for name in averaged.state_dict()) == wrapped
    assert_baked(tmp_path / "made.pt", wanted, model.state_dict())


def test_averaged_model_with_statistics_estimated_anew(tmp_path: Path) -> None:
    """After update_bn BatchNorm's statistics are neither raw nor averaged: those of the averaged model are baked, also from the pickled object."""
    from torch.optim.swa_utils import AveragedModel, update_bn

    model = network()
    averaged = AveragedModel(model)
    for _ in range(4):
        train(model)
        averaged.update_parameters(model)
    update_bn([torch.randn(8, 3) for _ in range(3)], averaged)
    assert not torch.equal(averaged.module[1].running_mean, model[1].running_mean)
    torch.save({"model": model.state_dict(), "swa_model": averaged.state_dict()}, tmp_path / "state.pt")
    torch.save({"model": model.state_dict(), "swa_model": averaged}, tmp_path / "object.pt")
    for name in ("state.pt", "object.pt"):
        assert read_layout(open_checkpoint(tmp_path / name)).candidates[0].updates == 4
        assert_baked(tmp_path / name, averaged.module.state_dict(), model.state_dict())


@pytest.mark.parametrize("kind", ["V2", "V3 in float32 beside bfloat16", "V3 without buffers"])
def test_timm_averages(kind: str, tmp_path: Path) -> None:
    """ModelEmaV2 and V3 through timm's own saver; V3 may keep float32 beside bfloat16 weights, and may copy buffers."""
    timm_utils = pytest.importorskip("timm.utils", reason="timm is not installed")

    half = kind == "V3 in float32 beside bfloat16"
    model = network().to(torch.bfloat16) if half else network()
    if kind == "V2":
        averaged = timm_utils.ModelEmaV2(model, decay=0.9)
    else:
        averaged = timm_utils.ModelEmaV3(model, decay=0.9, exclude_buffers=kind == "V3 without buffers", **({"dtype": torch.float32} if half else {}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        model(torch.randn(8, 3, dtype=torch.bfloat16 if half else torch.float32)).square().mean().backward()
        optimizer.step()
        averaged.update(model)
    folder = {"checkpoint_dir": str(tmp_path), "recovery_dir": str(tmp_path)}
    timm_utils.CheckpointSaver(model, optimizer, model_ema=averaged, **folder).save_checkpoint(0, metric=1.0)
    path = tmp_path / "last.pth.tar"
    assert read_layout(open_checkpoint(path)).layout == "timm"
    assert averaged.module[0].weight.dtype == torch.float32
    assert_baked(path, averaged.module.state_dict(), model.state_dict())
