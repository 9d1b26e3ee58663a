"""Tensors read through references equal what torch itself reads, for every dtype and every view."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter.artifacts import StorageRef, TensorRef
from exporter.checkpoint import open_checkpoint
from exporter.errors import CheckpointError
from exporter.tensors import DTYPES, TensorReader, is_contiguous, num_spanned, read_integer, read_tensor

SAVED_DTYPES = [name for name, dtype in DTYPES.items() if dtype.numpy]


def saved(tmp_path: Path, value: object) -> object:
    """Save with torch and open without it."""
    path = tmp_path / "saved.pt"
    torch.save(value, path)
    return open_checkpoint(path).root


def bits(tensor: torch.Tensor) -> bytes:
    """Return the tensor's bytes in row-major order."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


@pytest.mark.parametrize("name", SAVED_DTYPES)
def test_every_dtype(name: str, tmp_path: Path) -> None:
    """Values of every dtype that NumPy or ml_dtypes has come back bit for bit."""
    dtype = getattr(torch, name)
    raw = torch.arange(0, 48 * DTYPES[name].size_bytes, dtype=torch.uint8) % (2 if name == "bool" else 120)
    tensor = raw.view(dtype).reshape(6, 8)
    ref = saved(tmp_path, {"w": tensor})["w"]
    array = read_tensor(ref)
    assert ref.dtype == name
    assert array.shape == (6, 8)
    assert array.tobytes() == bits(tensor)


BASE = torch.arange(120, dtype=torch.float32).reshape(2, 3, 4, 5)
VIEWS = {
    "whole": BASE,
    "transposed": BASE.transpose(1, 3),
    "channels last": BASE.to(memory_format=torch.channels_last),
    "slice": BASE[1:, :2, 1:3],
    "steps": BASE[..., ::2],
    "one element": BASE[1, 2, 3, 4],
    "empty": BASE[:, :0],
    "expanded": torch.ones(1).expand(4, 5),
    "expanded inside": BASE[:, :1].expand(2, 7, 4, 5),
    "overlapping": torch.arange(10.0).unfold(0, 4, 1),
    "axes of length one": BASE[:1, :, :1],
    "diagonal": torch.arange(25.0).reshape(5, 5).diagonal(),
    "scalar": torch.tensor(3.5),
    "parameter": torch.nn.Parameter(BASE[0].T.contiguous().T if BASE[0].ndim == 2 else BASE[0]),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("chunk_bytes", [16, 64, 1 << 20])
def test_every_view(view: str, chunk_bytes: int, tmp_path: Path) -> None:
    """Strided views come back in row-major order, whatever the size of a chunk."""
    tensor = VIEWS[view]
    ref = saved(tmp_path, [tensor])[0]
    assert ref.shape == tuple(tensor.shape)
    assert is_contiguous(ref) == tensor.is_contiguous()
    assert ref.is_parameter == isinstance(tensor, torch.nn.Parameter)
    with TensorReader() as reader:
        content = b"".join(bytes(part) for part in reader.chunks(ref, chunk_bytes=chunk_bytes))
    assert content == bits(tensor)
    np.testing.assert_array_equal(read_tensor(ref), tensor.detach().numpy())


def test_shared_storage_is_one_storage(tmp_path: Path) -> None:
    """Tied tensors refer to the same bytes; views of them start where they start."""
    base = torch.arange(12.0)
    root = saved(tmp_path, {"a": base, "b": base[4:8], "c": base})
    assert root["a"].storage == root["b"].storage == root["c"].storage
    assert root["b"].offset == 4
    assert read_tensor(root["b"]).tolist() == [4, 5, 6, 7]


def test_tensor_with_attributes_and_lazy_views(tmp_path: Path) -> None:
    """A parameter with attributes is a tensor; a lazily conjugated one is not taken for its bytes."""
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.note = "x"
    root = saved(tmp_path, {"p": parameter, "conj": torch.ones(2, dtype=torch.complex64).conj()})
    assert isinstance(root["p"], TensorRef)
    assert root["p"].is_parameter
    assert not isinstance(root["conj"], TensorRef)


def test_integers_are_read_without_numpy(tmp_path: Path) -> None:
    """Counters of every integer dtype, with their sign; anything else is None."""
    values = {
        f"{dtype}": torch.tensor(-3 if not str(dtype).startswith("torch.u") else 3, dtype=dtype) for dtype in (torch.int64, torch.int32, torch.uint8)
    }
    root = saved(tmp_path, {**values, "f": torch.tensor(1.0), "many": torch.arange(3)})
    assert [read_integer(root[name]) for name in root] == [-3, -3, 3, None, None]


def make_ref(path: Path, content: bytes, *, crc32: int | None, shape: tuple[int, ...] = (4,)) -> TensorRef:
    """Return a reference to a file that is one storage."""
    path.write_bytes(content)
    return TensorRef("float32", shape, (1,), 0, StorageRef("0", path, 0, 16, crc32))


def test_wrong_checksum_and_short_file_are_refused(tmp_path: Path) -> None:
    """Bytes that do not fit their checksum, or are not there, are never handed out as a tensor."""
    content = np.arange(4, dtype=np.float32).tobytes()
    good = make_ref(tmp_path / "good", content, crc32=zlib.crc32(content))
    assert read_tensor(good).tolist() == [0, 1, 2, 3]
    with pytest.raises(CheckpointError, match="checksum"):
        read_tensor(make_ref(tmp_path / "bad", content, crc32=1))
    with pytest.raises(CheckpointError, match="middle of a tensor"):
        read_tensor(make_ref(tmp_path / "short", content[:9], crc32=None))


def test_checksum_covers_the_whole_storage(tmp_path: Path) -> None:
    """A view of the first elements is refused where the last ones are damaged."""
    content = np.arange(4, dtype=np.float32).tobytes()
    ref = make_ref(tmp_path / "x", content[:-1] + b"\x01", crc32=zlib.crc32(content), shape=(2,))
    with pytest.raises(CheckpointError, match="checksum"):
        read_tensor(ref)


def test_views_outside_their_storage_are_refused(tmp_path: Path) -> None:
    """A shape that reaches beyond the bytes is refused when the file is opened."""
    path = tmp_path / "x.pt"
    torch.save({"w": torch.arange(6.0)}, path)
    content = path.read_bytes()
    assert content.count(b"K\x06\x85") == 1
    import zipfile

    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member.replace(b"K\x06\x85", b"K\x07\x85"))
    with pytest.raises(CheckpointError, match="does not fit its bytes") as refused:
        open_checkpoint(path)
    assert refused.value.code == "E112"


@pytest.mark.parametrize(
    ("shape", "strides", "count"),
    [((), (), 1), ((3,), (1,), 3), ((2, 3), (3, 1), 6), ((2, 3), (1, 2), 6), ((0, 5), (5, 1), 0), ((4, 5), (0, 0), 1), ((2,), (7,), 8)],
)
def test_spanned_elements(shape: tuple[int, ...], strides: tuple[int, ...], count: int) -> None:
    """A view spans from its first element to its last."""
    assert num_spanned(shape, strides) == count
