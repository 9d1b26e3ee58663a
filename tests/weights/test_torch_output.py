"""Baked weights as a torch file are what torch itself loads, bit for bit."""

from __future__ import annotations

import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter.artifacts import TensorRef, TensorSpec
from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import ArtifactError, LayoutError
from exporter.tensors import header_bytes, read_tensor
from exporter.weights import TrainerForm, bake, save_torch

Save = Callable[..., Path]

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def every_kind() -> dict[str, torch.Tensor]:
    """Return tensors of every dtype and of odd shapes, among them tied ones, a view, an empty one and a name outside ASCII."""
    tensors = {f"layer.{str(dtype).rpartition('.')[2]}": torch.arange(7 * 11).reshape(7, 11).to(dtype) for dtype in DTYPES}
    tensors |= {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "größe": torch.ones(300, 1, 300),
        "complex": torch.ones(3, dtype=torch.complex64),
    }
    tensors["tied"] = tensors["layer.float32"]
    tensors["view"] = torch.arange(60.0).reshape(6, 10).T[1:9:2]
    return tensors


@pytest.mark.parametrize("mmap", [False, True], ids=["read", "mapped"])
@pytest.mark.parametrize("under", ["", "state_dict"])
def test_torch_loads_what_was_baked(under: str, mmap: bool, save: Save, tmp_path: Path) -> None:
    """weights_only loading gives every tensor with its dtype, shape and bits, under the key that was asked for, and shares no memory."""
    tensors = every_kind()
    weights = bake(open_checkpoint(save({"state_dict": tensors})), BakeConfig(choice="raw"), tmp_path / "w.safetensors")
    save_torch(weights, tmp_path / "out.pt", form=TrainerForm(under))
    loaded = torch.load(tmp_path / "out.pt", weights_only=True, mmap=mmap)
    state = loaded[under] if under else loaded
    assert (list(loaded) == [under]) == bool(under)
    assert set(state) == set(tensors)
    for name, tensor in tensors.items():
        assert (state[name].dtype, state[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(state[name], tensor), name
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values() if tensor.numel()}) == len(tensors) - 1


def test_our_own_reader_takes_it(digits: Path, tmp_path: Path) -> None:
    """The file passes the strict reading of zip directories, its contents begin where memory can be mapped, twice it is the same."""
    weights = bake(open_checkpoint(digits / "digits.pt"), BakeConfig(), tmp_path / "w.safetensors")
    for name in ("1.pt", "2.pt"):
        save_torch(weights, tmp_path / name)
    assert (tmp_path / "1.pt").read_bytes() == (tmp_path / "2.pt").read_bytes()
    opened = open_checkpoint(tmp_path / "1.pt")
    assert not opened.calls
    wanted = torch.load(digits / "digits.pt")["model_ema"]
    for name, ref in opened.root.items():
        assert isinstance(ref, TensorRef)
        assert ref.storage.offset % 64 == 0
        if ref.dtype == "float32":
            np.testing.assert_array_equal(read_tensor(ref), wanted[f"module.{name}"].numpy())


@pytest.mark.parametrize("limit", [1000, 4096, 100_000])
def test_large_files_are_mapped_too(limit: int, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the limits of 32 bits lowered, members and places beyond them are in the form of 64 bits; torch and our reader take every tensor."""
    monkeypatch.setattr("zipfile.ZIP64_LIMIT", limit)
    monkeypatch.setattr("exporter.weights.torch_output._ZIP64_FROM", int(limit / 1.05))
    around = {f"{size}": torch.arange(size, dtype=torch.uint8) for size in (1, limit - 1, limit, limit + 1, int(limit / 1.05) + 2)}
    tensors = {**every_kind(), **around}
    weights = bake(open_checkpoint(save({"state_dict": tensors})), BakeConfig(choice="raw"), tmp_path / "w.safetensors")
    save_torch(weights, tmp_path / "out.pt")
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        assert any(struct.unpack_from("<H", entry.extra)[0] == 1 for entry in archive.infolist() if entry.extra), "no member has 64 bits"
    opened = open_checkpoint(tmp_path / "out.pt").root
    for mmap in (False, True):
        loaded = torch.load(tmp_path / "out.pt", weights_only=True, mmap=mmap)
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    for name, tensor in tensors.items():
        ref = opened[name]
        assert ref.storage.offset % 64 == 0
        assert read_tensor(ref).tobytes() == tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_casting_takes_the_memory_of_a_chunk(dtype: str, tmp_path: Path) -> None:
    """A tensor of 256 MB is cast, written and put into a torch file within 16 MB."""
    size = 64 << 20
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(header_bytes([TensorSpec("weight", (size,), "float32")], {}))
        file.seek(size * 4 - 4, 1)  # a hole: zeros that take no disk
        file.write(struct.pack("<f", 1.5))
    checkpoint = open_checkpoint(path)
    tracemalloc.start()
    try:
        weights = bake(checkpoint, BakeConfig(choice="raw", dtype=dtype), tmp_path / "out.safetensors")
        save_torch(weights, tmp_path / "out.pt")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
    loaded = torch.load(tmp_path / "out.pt", weights_only=True, mmap=True)["weight"]
    assert (loaded.shape, str(loaded.dtype), float(loaded[-1])) == ((size,), f"torch.{dtype}", 1.5)


def test_refusals_leave_everything_as_it_was(digits: Path, save: Save, tmp_path: Path) -> None:
    """The checkpoint is never overwritten, a dtype without storage class is named, altered weights are not passed on."""
    path = digits / "digits.pt"
    weights = bake(open_checkpoint(path), BakeConfig(), tmp_path / "w.safetensors")
    before = path.read_bytes()
    with pytest.raises(LayoutError) as caught:
        save_torch(weights, path, keep=(path,))
    assert (caught.value.code, path.read_bytes() == before) == ("E215", True)
    small = {"state_dict": {"weight": torch.ones(3).to(torch.float8_e4m3fn)}}
    eight_bit = bake(open_checkpoint(save(small)), BakeConfig(choice="raw"), tmp_path / "8.safetensors")
    with pytest.raises(LayoutError) as caught:
        save_torch(eight_bit, tmp_path / "8.pt")
    assert caught.value.code == "E230"
    weights.path.write_bytes(eight_bit.path.read_bytes())
    with pytest.raises(ArtifactError) as altered:
        save_torch(weights, tmp_path / "altered.pt")
    assert altered.value.code == "E723"
    assert not list(tmp_path.glob("*.pt")) or {p.name for p in tmp_path.glob("*.pt")} == {"made.pt"}
