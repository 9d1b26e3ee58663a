"""Writes the seeds of the fuzzer with the libraries themselves: ``python tests/fuzz/seeds.py FOLDER``.

A library that is not installed writes none; what is missing is said. No seed is committed: all of them can be made again.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import pickle
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.weights import bake
from tests.checkpoint import bundles, distributed, flax_files, test_deepspeed, test_flax_msgpack, test_hdf5, test_tensorflow_bundle, test_torch_tar
from tests.fuzz import parcels
from tests.fuzz.targets import CANARY

__all__ = ["main", "write_seeds"]

Seeds = Iterator[tuple[str, bytes]]


class Payload:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (CANARY, "w")


def network() -> nn.Module:
    """Return a convolution and a BatchNorm."""
    return nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2))


def contents() -> dict[str, object]:
    """Return what trainers save, by layout."""
    model, other = network().state_dict(), network().state_dict()
    average = AveragedModel(network())
    average.update_parameters(network())
    optimizer = {"state": {0: {"exp_avg": torch.ones(2), "step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    wrapped = {f"module.{name}": tensor for name, tensor in other.items()}
    mangled = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in other.items() if "running" not in name}
    lit = {
        **{f"model.{name}": t for name, t in model.items()},
        **mangled,
        "model_ema.decay": torch.tensor(0.9),
        "model_ema.num_updates": torch.tensor(3),
    }
    flat = {f"{prefix}.{name}": t for prefix in ("ema_model", "online_model") for name, t in model.items()}
    schedule = {"inv_gamma": 1.0, "power": 0.66, "min_value": 0.0, "max_value": 0.99, "start_at": 0, "last_epoch": 400}
    return {
        "averaged": {"model": model, "model_ema": average.state_dict(), "optimizer": optimizer, "epoch": 1},
        "timm": {"arch": "x", "state_dict": model, "state_dict_ema": other, "args": argparse.Namespace(model_ema_decay=0.9)},
        "lightning": {"state_dict": model, "current_model_state": other, "averaging_state": {"n_averaged": torch.tensor(7)}},
        "swa": {"state_dict": model, "callbacks": {"StochasticWeightAveraging": {"n_averaged": 3, "average_model_state": other}}},
        "mmengine": {"meta": {}, "message_hub": {}, "state_dict": model, "ema_state_dict": {"steps": torch.tensor(300), **wrapped}},
        "mmcv": {"meta": {}, "state_dict": {**model, **{f"ema_{n.replace('.', '_')}": t for n, t in other.items() if "running" not in n}}},
        "lit": {"state_dict": lit},
        "ema-pytorch": {**flat, "initted": torch.tensor(True), "step": torch.tensor(500)},
        "shadow": {"model": model, "ema": {"shadow": other, "backup": {}, "decay": 0.9, "num_updates": 90}},
        "list": {"model": model, "ema": {"decay": 0.9, "num_updates": 5, "shadow_params": list(other.values())[:3]}},
        "k-diffusion": {"model": model, "model_ema": other, "ema_sched": schedule},
        "rt-detr": {"model": model, "ema": {"module": other, "updates": 9000}},
        "fairseq": {"model": model, "extra_state": {"ema": other}},
        "dino": {"student": wrapped, "teacher": other},
        "module": {"model": None, "ema": network().half(), "updates": 500},
        "views": {"a": torch.ones(4, 4).t(), "b": torch.ones(1).expand(3), "c": torch.ones(3)[1:], "d": torch.ones(2).bfloat16(), "e": torch.ones(0)},
        "odd": {"a": torch.eye(2).to_sparse(), "b": torch.ones(2, dtype=torch.complex64), "c": nn.Parameter(torch.ones(1)), "d": {1: (2, None)}},
        "payload": {"state_dict": model, "extra": Payload()},
        "bare": model,
    }


def torch_files() -> Seeds:
    """Files of torch.save, new and old."""
    for name, content in contents().items():
        for kind, is_zip in (("zip", True), ("legacy", False)):
            buffer = io.BytesIO()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
            yield f"{kind}-{name}", buffer.getvalue()


def tars() -> Seeds:
    """Archives of torch before 0.1.10."""
    for style in (0, 1, 2):
        yield f"tar-{style}", test_torch_tar.archive(test_torch_tar.parts(), style=style)


def pickles() -> Seeds:
    """Plain pickles of tensors and of arrays."""
    arrays = {"w": np.arange(6, dtype="f4").reshape(2, 3), "f": np.asfortranarray(np.ones((2, 3))), "n": np.int64(3), "s": "text"}
    for protocol in (2, 3, 4, 5):
        yield f"pickle-arrays-{protocol}", pickle.dumps({"ema": arrays, "net": arrays}, protocol)
        yield f"pickle-tensors-{protocol}", pickle.dumps({"state_dict": network().state_dict(), "state_dict_ema": network().state_dict()}, protocol)
    yield "pickle-payload", pickle.dumps({"a": Payload(), "b": {1, 2}, "c": frozenset("ab")}, 4)


def safetensors() -> Seeds:
    """Single files and an index with shards."""
    from safetensors.torch import save

    state = {name: tensor.contiguous() for name, tensor in network().state_dict().items()}
    yield "safetensors-plain", save(state, {"format": "pt"})
    yield (
        "safetensors-dtypes",
        save({str(d): torch.ones(2, dtype=d) for d in (torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.uint8, torch.float64)}),
    )
    first, second = ({name: state[name] for name in part} for part in (list(state)[:2], list(state)[2:]))
    names = {**dict.fromkeys(first, "a.safetensors"), **dict.fromkeys(second, "b.safetensors")}
    import json

    total = sum(tensor.nbytes for tensor in state.values())
    index = json.dumps({"metadata": {"total_size": total}, "weight_map": names}).encode()
    yield "shards-two", parcels.pack({"a.safetensors": save(first), "b.safetensors": save(second), "model.safetensors.index.json": index})


def folders() -> Seeds:
    """Folders of torch.distributed.checkpoint and of DeepSpeed."""
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        state = network().state_dict()
        content = {
            "model": state,
            "ema": {f"module.{name}": t for name, t in state.items()},
            "step": 3,
            "optim": {"state": {"w": {"exp_avg": torch.ones(2)}}},
        }
        distributed.save(content, folder / "a")
        boxes = [((0, 0), (2, 3)), ((2, 0), (1, 3)), ((0, 3), (3, 1))]
        distributed.save_shards("w", torch.arange(12.0).reshape(3, 4), boxes, folder / "b")
        distributed.save({f"model.{n}": t for n, t in state.items()} | {"optim.w.exp_avg": torch.ones(2)}, folder / "c")
        for name in "abc":
            yield f"distributed-{name}", parcels.pack_folder(folder / name)
    buffer = io.BytesIO()
    torch.save(test_deepspeed.states(network(), ema=network().state_dict()), buffer)
    yield "deepspeed-one", parcels.pack({"latest": b"step3", "step3/mp_rank_00_model_states.pt": buffer.getvalue()})


def programs() -> Seeds:
    """Exported programs and TorchScript."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as there:
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
        torch.export.save(torch.export.export(model, (torch.ones(2, 2),)), Path(there) / "a.pt2")
        yield "program-exported", (Path(there) / "a.pt2").read_bytes()
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(model), buffer)
        yield "program-script", buffer.getvalue()


def keras() -> Seeds:
    """Files with HDF5 in them: by h5py as Keras lays them out, and by Keras where it is installed."""
    if importlib.util.find_spec("h5py") is None:
        return
    with tempfile.TemporaryDirectory() as there:
        path = test_hdf5.write(Path(there) / "a.h5", **{"0": np.ones((2, 3), "f4"), "1": np.ones(3, "f4")})
        yield "hdf5-plain", path.read_bytes()
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(
                "config.json", '{"class_name": "Sequential", "config": {"layers": [{"class_name": "Dense", "config": {"name": "first"}}]}}'
            )
            archive.writestr("model.weights.h5", path.read_bytes())
        yield "hdf5-keras", buffer.getvalue()
        if importlib.util.find_spec("keras") is None:
            return
        os.environ.setdefault("KERAS_BACKEND", "torch")
        import keras as library

        model = library.Sequential([library.layers.Input((2,)), library.layers.Dense(2), library.layers.BatchNormalization()])
        model.compile(library.optimizers.SGD(0.1, use_ema=True), "mse")
        model.train_on_batch(np.ones((2, 2)), np.ones((2, 2)))
        for name in ("b.keras", "c.h5", "d.weights.h5"):
            (model.save_weights if "weights" in name else model.save)(Path(there) / name)
            yield f"hdf5-{name}", (Path(there) / name).read_bytes()


def ultralytics() -> Seeds:
    """A pickled detector of ultralytics, a small one, without its weights' bytes."""
    if importlib.util.find_spec("ultralytics") is None:
        return
    os.environ.setdefault("YOLO_OFFLINE", "true")
    from ultralytics.nn.tasks import DetectionModel

    small = {
        "nc": 2,
        "backbone": [[-1, 1, "Conv", [4, 3, 2]], [-1, 1, "C2f", [4, True]]],
        "head": [[[1], 1, "Detect", ["nc"]]],
        "scales": {"n": [1, 1, 8]},
    }
    model = DetectionModel({**small, "yaml_file": "yolov8n.yaml"}, verbose=False).half()
    buffer = io.BytesIO()
    torch.save({"epoch": 1, "model": None, "ema": model, "updates": 500, "optimizer": None}, buffer)
    yield "zip-ultralytics", buffer.getvalue()


def timm() -> Seeds:
    """The file of timm's own saver."""
    if importlib.util.find_spec("timm") is None:
        return
    from timm.utils import CheckpointSaver, ModelEmaV3

    model = network()
    with tempfile.TemporaryDirectory() as there:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        arguments = argparse.Namespace(model="resnet10t", model_ema_decay=0.9)
        CheckpointSaver(model, optimizer, args=arguments, model_ema=ModelEmaV3(model), checkpoint_dir=there, recovery_dir=there).save_checkpoint(
            0, metric=1.0
        )
        yield "zip-timm-saver", (Path(there) / "last.pth.tar").read_bytes()


def tensorflow_and_flax() -> Seeds:
    """Bundles and MessagePack files, byte by byte as the libraries write them."""
    with tempfile.TemporaryDirectory() as there:
        test_tensorflow_bundle.bundle().write(Path(there))
        yield "tensorflow-plain", parcels.pack_folder(Path(there))
    with tempfile.TemporaryDirectory() as there:
        made = bundles.Bundle()
        for name, value in (("w", 2.0), ("w/ExponentialMovingAverage", 0.5), ("w/Momentum", 1.0)):
            made.add(name, np.full((2, 2), value, "f4"))
        made.write(Path(there))
        yield "tensorflow-average", parcels.pack_folder(Path(there))
    yield "flax-plain", flax_files.packed(test_flax_msgpack.TREE)
    yield "flax-average", flax_files.packed({"params": {"w": np.ones(3, "f4")}, "ema_params": {"w": np.zeros(3, "f4")}, "step": 3})


def artefacts() -> Seeds:
    """Weights that this project baked, with their record."""
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        torch.save(contents()["averaged"], folder / "a.pt")
        bake(open_checkpoint(folder / "a.pt"), BakeConfig(allow_cold=True), folder / "out" / "baked.safetensors")
        yield "artefact-baked", parcels.pack_folder(folder / "out")


WRITERS: tuple[Callable[[], Seeds], ...] = (
    torch_files,
    tars,
    pickles,
    safetensors,
    folders,
    programs,
    keras,
    ultralytics,
    timm,
    tensorflow_and_flax,
    artefacts,
)


def write_seeds(folder: Path) -> dict[str, int]:
    """Write every seed to ``folder``; return name -> bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {}
    torch.set_num_threads(1)
    for writer in WRITERS:
        for name, content in writer():
            (folder / name).write_bytes(content)
            sizes[name] = len(content)
    return sizes


def main() -> None:
    """Write the seeds to the folder named on the command line."""
    sizes = write_seeds(Path(sys.argv[1]))
    print(f"{len(sizes)} seeds, {sum(sizes.values())} bytes")
    for name in ("timm", "ultralytics", "keras", "h5py"):
        if importlib.util.find_spec(name) is None:
            print(f"none by {name}, which is not installed")


if __name__ == "__main__":
    main()
