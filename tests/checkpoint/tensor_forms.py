"""Tensors of every dtype and form of view, and what torch says of them: what the tests of each container write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from exporter.artifacts import ObjectRef, TensorRef
from exporter.tensors import TensorReader

__all__ = ["DTYPES", "bytes_of", "every_form", "same_bytes", "write"]

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
    torch.complex64,
    torch.complex128,
)


def every_form() -> dict[str, torch.Tensor]:
    """Return a tensor of every dtype, and every kind of view of one storage."""
    table = {f"dtype {str(dtype).removeprefix('torch.')}": (torch.arange(5) % 2).to(dtype) for dtype in DTYPES}
    base = torch.arange(24.0).reshape(4, 6)
    table |= {
        "whole": base,
        "transposed": base.t(),
        "rows": base[1:3],
        "part": base[1:, 2:5],
        "every other": base[::2, ::3],
        "expanded": base[0].expand(3, 6),
        "number": base[2, 2],
        "none": base[:, :0],
        "of its own": torch.ones(3, 2),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        "long": torch.arange(3000.0),
    }
    return table


def bytes_of(tensor: torch.Tensor) -> bytes:
    """Return the tensor's elements in row-major order."""
    contiguous = tensor.detach().contiguous().reshape(-1)
    return bytes(contiguous.view(torch.uint8).numpy().tobytes()) if contiguous.numel() else b""


def same_bytes(root: object, wanted: Mapping[str, torch.Tensor]) -> None:
    """Check that the tree holds these tensors: names in order, dtypes, shapes and bytes."""
    assert isinstance(root, dict)
    assert list(root) == list(wanted)
    with TensorReader() as reader:
        for name, tensor in wanted.items():
            ref = root[name]
            assert isinstance(ref, TensorRef), (name, ref.callee if isinstance(ref, ObjectRef) else ref)
            assert ref.dtype == str(tensor.dtype).removeprefix("torch."), name
            assert ref.shape == tuple(tensor.shape), name
            assert b"".join(map(bytes, reader.chunks(ref))) == bytes_of(tensor), name


def write(path: Path, content: bytes) -> Path:
    """Write ``content`` and return the path."""
    path.write_bytes(content)
    return path
