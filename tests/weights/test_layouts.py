"""Each layout is recognised by its signature, and nothing else is taken for an average."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from exporter.artifacts import LayoutReading
from exporter.errors import LayoutError

Read = Callable[..., LayoutReading]


def averaged(model: nn.Module, other: nn.Module, **options: object) -> AveragedModel:
    """Return torch's own average of two models."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), **options)
    average.update_parameters(model)
    average.update_parameters(other)
    return average


def test_timm(model: nn.Module, other_model: nn.Module, read: Read) -> None:
    """state_dict and state_dict_ema; arch is the model; the decay is in args where they were saved."""
    content = {"arch": "resnet18", "version": 2, "state_dict": model.state_dict(), "state_dict_ema": other_model.state_dict()}
    reading = read(content)
    assert (reading.layout, reading.model, reading.raw_at) == ("timm", "timm:resnet18", "state_dict")
    assert [(c.name, c.num_tensors, c.decay) for c in reading.candidates] == [("state_dict_ema", 6, None)]
    reading = read({**content, "args": argparse.Namespace(model_ema_decay=0.9998, model_ema_warmup=False)})
    assert reading.candidates[0].decay == 0.9998
    assert read({"arch": "x", "version": 2, "state_dict": model.state_dict(), "state_dict_ema": None}).candidates == ()


@pytest.mark.parametrize("key", ["model_ema", "ema", "swa_model", "anything"])
@pytest.mark.parametrize("use_buffers", [False, True])
def test_torch_averaged_model(key: str, use_buffers: bool, model: nn.Module, other_model: nn.Module, read: Read) -> None:
    """module. and n_averaged under any key; the number of updates is read, the decay is not in the file."""
    reading = read({"model": model.state_dict(), key: averaged(model, other_model, use_buffers=use_buffers).state_dict()})
    assert (reading.layout, reading.raw_at) == ("torch-averaged-model", "model")
    (candidate,) = reading.candidates
    assert (candidate.name, candidate.updates, candidate.decay, candidate.num_tensors, candidate.state) == (key, 2, None, 6, "unknown")
    (candidate,) = read({"model": model.state_dict(), key: averaged(model, other_model).state_dict()}, decay=0.9).candidates
    assert candidate.initial_share == pytest.approx(0.9)


def test_averaged_model_at_the_top_and_as_an_object(model: nn.Module, other_model: nn.Module, read: Read) -> None:
    """The bare state dict of an AveragedModel, and a pickled one."""
    (candidate,) = read(averaged(model, other_model).state_dict()).candidates
    assert (candidate.at, candidate.num_tensors) == ("the top of the file", 6)
    plain = AveragedModel(model)
    plain.update_parameters(model)
    (candidate,) = read({"swa": plain}).candidates
    assert (candidate.name, candidate.updates, candidate.num_tensors) == ("swa", 1, 6)


def test_averaged_model_over_data_parallel_and_compile(model: nn.Module, other_model: nn.Module, baked: Callable[..., object]) -> None:
    """Wrappers of wrappers come off both copies."""
    raw = {f"module.{name}": value for name, value in model.state_dict().items()}
    ema = {f"module.module._orig_mod.{name}": value for name, value in other_model.state_dict().items()}
    _, arrays = baked({"model": raw, "model_ema": {"n_averaged": torch.tensor(5), **ema}})
    assert set(arrays) == set(model.state_dict())


def test_a_submodule_called_module_keeps_its_name(baked: Callable[..., object]) -> None:
    """A wrapper's prefix comes off once; the model's own attribute of the same name stays where the raw weights have it."""
    raw = {"module.weight": torch.ones(2), "head": torch.ones(1)}
    ema = {"n_averaged": torch.tensor(5), "module.module.weight": torch.zeros(2), "module.head": torch.zeros(1)}
    _, arrays = baked({"model": raw, "ema": ema})
    assert set(arrays) == {"module.weight", "head"}


def test_torchvision_references(model: nn.Module, other_model: nn.Module, read: Read) -> None:
    """The decay that was used is computed from args; n_averaged 0 is warm-up, not cold."""
    average = averaged(model, other_model)
    args = argparse.Namespace(model="resnet50", model_ema_decay=0.99998, model_ema_steps=32, world_size=8, batch_size=128, epochs=600)
    reading = read({"model": model.state_dict(), "model_ema": average.state_dict(), "args": args})
    assert (reading.layout, reading.model) == ("torchvision", "torchvision:resnet50")
    assert reading.candidates[0].decay == pytest.approx(1 - 0.00002 * 8 * 128 * 32 / 600)
    average.n_averaged.fill_(0)
    (candidate,) = read({"model": model.state_dict(), "model_ema": average.state_dict(), "args": args}).candidates
    assert candidate.state == "unknown"
    assert "warm-up" in candidate.remark


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (lambda ema: {"ema": ema}, "ema"),
        (lambda ema: {"model_ema": ema}, "model_ema"),
        (lambda ema: {"ema_model": ema}, "ema_model"),
        (lambda ema: {"ema_state_dict": ema}, "ema_state_dict"),
        (lambda ema: {"shadow": ema}, "shadow"),
        (lambda ema: {"ema": {"shadow": ema, "decay": 0.99, "num_updates": 900}}, "ema"),
        (lambda ema: {"ema": {"state_dict": ema, "decay": 0.99, "updates": torch.tensor(900)}}, "ema"),
        (lambda ema: {"ema": {**ema, "decay": 0.99, "num_updates": 900}}, "ema"),
        (lambda ema: {"ema": ema, "ema_decay": 0.99, "ema_updates": 900, "step": 123_456}, "ema"),
    ],
)
def test_plain_dict(place: Callable[..., dict[str, object]], name: str, model: nn.Module, other_model: nn.Module, read: Read) -> None:
    """Weights under or one level below a key that says so, with decay and updates where they stand beside them."""
    content = place(dict(other_model.state_dict()))
    reading = read({"model": model.state_dict(), **content})
    (candidate,) = reading.candidates
    assert (reading.layout, candidate.name, candidate.num_tensors) == ("dict", name, 6)
    if "decay" in str(content):
        assert (candidate.decay, candidate.updates, candidate.state) == (0.99, 900, "settled")
    else:
        assert (candidate.decay, candidate.updates, candidate.state) == (None, None, "unknown")


def test_module_and_updates_is_the_ramp(model: nn.Module, other_model: nn.Module, read: Read) -> None:
    """``ema: {module, updates}`` is the ModelEMA of detectors, whose decay ramps up."""
    (candidate,) = read({"model": model.state_dict(), "ema": {"module": other_model.state_dict(), "updates": 30_000}}).candidates
    assert (candidate.name, candidate.schedule, candidate.state) == ("ema", "0.9999·(1-exp(-n/2000))", "settled")


def test_bare_state_dict_is_raw_only(model: nn.Module, read: Read) -> None:
    """A state dict alone has no average, whatever its layers are called."""
    reading = read({**model.state_dict(), "ema": torch.ones(3), "shadow.weight": torch.ones(1), "ema_attention.weight": torch.ones(2)})
    assert (reading.layout, reading.candidates, reading.raw_num_tensors) == ("state dict", (), 9)


@pytest.mark.parametrize("value", [None, {}, 0.999, "path", [], {"decay": 0.9}])
def test_an_empty_ema_is_no_candidate(value: object, model: nn.Module, read: Read) -> None:
    """``ema: None`` and the like are not an average."""
    reading = read({"model": model.state_dict(), "ema": value})
    assert reading.candidates == ()
    assert reading.raw_at == "model"
    assert "ema" in reading.found


def test_optimizer_slots_are_never_weights(model: nn.Module, read: Read) -> None:
    """Momentum and Adam's averages are listed as slots, whatever they are called."""
    adam = torch.optim.Adam(model.parameters())
    sgd = torch.optim.SGD(model.parameters(), momentum=0.9)
    model(torch.ones(2, 2, 4, 4)).sum().backward()
    adam.step()
    sgd.step()
    reading = read({"model": model.state_dict(), "optimizer": adam.state_dict(), "nested": {"opt": sgd.state_dict()}})
    assert {(s.at, s.slot, s.num_tensors) for s in reading.optimizer_slots} == {
        ("optimizer", "step", 3),
        ("optimizer", "exp_avg", 3),
        ("optimizer", "exp_avg_sq", 3),
        ("nested/opt", "momentum_buffer", 3),
    }
    assert next(s.size_bytes for s in reading.optimizer_slots if s.slot == "exp_avg") == 4 * sum(p.numel() for p in model.parameters())
    assert reading.candidates == ()


def test_several_averages_are_all_listed(model: nn.Module, other_model: nn.Module, read: Read) -> None:
    """Averages of different layouts in one file are candidates side by side."""
    content = {
        "model": model.state_dict(),
        "ema": other_model.state_dict(),
        "swa": averaged(model, other_model).state_dict(),
        "shadow": other_model.state_dict(),
    }
    assert {c.name for c in read(content).candidates} == {"ema", "swa", "shadow"}


@pytest.mark.parametrize("choice", ["ema", "raw"])
def test_a_layout_that_cannot_be_baked_is_refused(choice: str, read: Read, baked: Callable[..., object]) -> None:
    """A schedule-free optimizer with some groups in train mode and some not: looking says why, baking is refused."""
    groups = [{"train_mode": mode, "params": [number], "weight_sum": 1.0, "lr_max": 0.1} for number, mode in enumerate((True, False))]
    states = {number: {"z": torch.ones(2)} for number in range(2)}
    content = {"model": {"a.weight": torch.ones(2), "b.weight": torch.ones(2)}, "optimizer": {"state": states, "param_groups": groups}}
    reading = read(content)
    assert (reading.layout, reading.candidates) == ("schedule-free", ())
    assert any(remark.startswith("not baked") for remark in reading.remarks)
    with pytest.raises(LayoutError, match="not supported yet") as refused:
        baked(content, choice=choice)
    assert refused.value.code == "E202"
    assert len(refused.value.facts["meaning"]) > 40


def test_yolox_is_said_to_be_averaged_already(model: nn.Module, read: Read) -> None:
    """YOLOX writes the average under model; the file cannot tell."""
    reading = read({"start_epoch": 1, "model": model.state_dict(), "optimizer": {"x": 1}, "best_ap": 0.1, "curr_ap": 0.1})
    assert reading.candidates == ()
    assert "cannot tell" in reading.raw_remark


class FakeDetector(nn.Module):
    """A pickled module as ultralytics writes one, under its own class name."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.model = inner
        self.yaml = {"yaml_file": "yolov8n.yaml", "nc": 4}
        self.register_buffer("temporary", torch.ones(1), persistent=False)


FakeDetector.__module__, FakeDetector.__qualname__ = "ultralytics.nn.tasks", "DetectionModel"
FakeDetector.__name__ = "DetectionModel"


@pytest.fixture
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pickle find the class while it writes; it is gone when the file is read."""
    import sys
    import types

    module = types.ModuleType("ultralytics.nn.tasks")
    module.DetectionModel = FakeDetector
    for name in ("ultralytics", "ultralytics.nn"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "ultralytics.nn.tasks", module)


@pytest.mark.usefixtures("_importable")
def test_ultralytics(model: nn.Module, read: Read, baked: Callable[..., object]) -> None:
    """A pickled module under ema: its own names, half precision, updates, ramp; nothing is imported."""
    detector = FakeDetector(model).half()
    content = {"epoch": 3, "model": None, "ema": detector, "updates": 12_400, "optimizer": None}
    reading = read(content)
    assert (reading.layout, reading.model, reading.raw_at, reading.remarks) == ("ultralytics", "ultralytics:yolov8n.yaml", None, ())
    assert reading.model_arguments == {"nc": 4}
    (candidate,) = reading.candidates
    assert (candidate.name, candidate.updates, candidate.state, candidate.dtypes) == ("ema", 12_400, "settled", ("float16", "int64"))
    _, arrays = baked(content)
    assert list(arrays) == sorted(detector.state_dict(), key=lambda n: (-detector.state_dict()[n].element_size(), n))
    for name, tensor in detector.state_dict().items():
        assert arrays[name].tobytes() == tensor.numpy().tobytes()


@pytest.mark.usefixtures("_importable")
def test_stripped_ultralytics_cannot_tell(model: nn.Module, read: Read, baked: Callable[..., object]) -> None:
    """After training the average is under model: no EMA is claimed, raw is refused nothing, and the remark says why."""
    content = {"epoch": -1, "model": FakeDetector(model).half(), "ema": None, "updates": None, "optimizer": None}
    reading = read(content)
    assert (reading.layout, reading.candidates, reading.raw_at) == ("ultralytics", (), "model")
    assert "already" in reading.raw_remark
    with pytest.raises(LayoutError, match="has none") as refused:
        baked(content)
    assert "already" in refused.value.facts["meaning"]
    assert baked(content, choice="raw")[0].summary.choice == "raw"


def test_module_that_contains_itself_is_refused(read: Read) -> None:
    """A pickled module with a cycle ends in a message, not in an endless walk."""
    loop = nn.Module()
    loop.weight = nn.Parameter(torch.ones(1))
    loop._modules["again"] = loop
    with pytest.raises(LayoutError, match="contains itself"):
        read({"model": loop})


def test_names_that_collide_are_refused(read: Read) -> None:
    """Stripping a wrapper must not merge two tensors."""
    with pytest.raises(LayoutError, match="both be called") as refused:
        read({"model": {"a.weight": torch.ones(1), "_orig_mod.a.weight": torch.ones(1)}})
    assert refused.value.code == "E216"
