"""safetensors headers: ours are read by the library, and a header with two meanings is refused."""

from __future__ import annotations

import json
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from safetensors.torch import save_file

from exporter.artifacts import TensorSpec
from exporter.checkpoint import open_checkpoint
from exporter.errors import CheckpointError
from exporter.tensors import DTYPES, header_bytes, ordered_specs, read_tensor


def raw_file(path: Path, header: bytes | object, data: bytes = b"") -> Path:
    """Write a safetensors file with a header of any content."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, *, shape: list[object] | None = None, dtype: object = "U8") -> dict[str, object]:
    """Return a header entry."""
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


HOSTILE = {
    "duplicate name": (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', b"xy", "twice"),
    "duplicate field": (b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"x", "twice"),
    "gap": ({"a": entry(0, 1), "b": entry(2, 3)}, b"xyz", "gap"),
    "overlap": ({"a": entry(0, 2), "b": entry(1, 3)}, b"xyz", "overlap"),
    "bytes after the tensors": ({"a": entry(0, 1)}, b"xy", "end at byte"),
    "bytes missing": ({"a": entry(0, 9)}, b"xy", "end at byte"),
    "size and shape disagree": ({"a": entry(0, 2, shape=[3])}, b"xy", "2 bytes for uint8"),
    "negative offset": ({"a": entry(-1, 2)}, b"xy", "data_offsets"),
    "negative shape": ({"a": entry(0, 2, shape=[-2])}, b"xy", "shape"),
    "shape of floats": ({"a": entry(0, 2, shape=[2.0])}, b"xy", "shape"),
    "shape of booleans": ({"a": entry(0, 1, shape=[True])}, b"x", "shape"),
    "many axes": ({"a": entry(0, 1, shape=[1] * 65)}, b"x", "shape"),
    "unknown dtype": ({"a": entry(0, 1, dtype="Q3")}, b"x", "unknown dtype"),
    "dtype that is no text": ({"a": entry(0, 1, dtype=["U8"])}, b"x", "unknown dtype"),
    "extra field": ({"a": {**entry(0, 1), "x": 1}}, b"x", "exactly"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
    "NaN": (b'{"a":NaN}', b"", "NaN"),
    "no JSON": (b"{nothing}", b"", "no JSON"),
    "deep JSON": (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", b"", "no JSON"),
    "huge number": (b'{"a":{"dtype":"U8","shape":[' + b"9" * 6000 + b'],"data_offsets":[0,1]}}', b"x", ""),
    "text after the JSON": (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}x', b"y", "no JSON"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_header_is_refused(case: str, tmp_path: Path) -> None:
    """Each breach of the format is refused and named."""
    header, data, words = HOSTILE[case]
    with pytest.raises(CheckpointError, match="breaks its format") as refused:
        open_checkpoint(raw_file(tmp_path / "x.safetensors", header, data))
    assert refused.value.code == "E114"
    assert words in refused.value.facts["found"]


@pytest.mark.parametrize("length", [0, 1, 1 << 40])
def test_header_length_beyond_the_file_is_refused(length: int, tmp_path: Path) -> None:
    """A declared length is compared with the file before anything is read."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b'{"a":1}')
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


def test_files_of_the_library_are_read(tmp_path: Path) -> None:
    """What safetensors writes is read with the same values and metadata."""
    tensors = {
        "a.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        "b": torch.arange(5),
        "c": torch.tensor(1.5, dtype=torch.bfloat16),
        "d": torch.zeros(0, 7),
        "e": torch.tensor([True, False]),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, {"format": "pt"})
    checkpoint = open_checkpoint(path)
    assert checkpoint.container == "safetensors"
    assert checkpoint.metadata == {"format": "pt"}
    assert set(checkpoint.root) == set(tensors)
    for name, tensor in tensors.items():
        assert checkpoint.root[name].dtype == str(tensor.dtype).removeprefix("torch.")
        assert read_tensor(checkpoint.root[name]).tobytes() == bytes(tensor.reshape(-1).view(torch.uint8).tolist())


NAMES = st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=12)
SPECS = st.dictionaries(
    NAMES, st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(["float32", "float16", "int64", "uint8", "bool"])), max_size=8
)


@given(content=SPECS)
@settings(max_examples=60)
def test_our_headers_are_read_by_the_library(content: dict[str, tuple[list[int], str]]) -> None:
    """For any names, shapes and dtypes the library accepts the file and sees the same tensors, aligned."""
    specs = ordered_specs(TensorSpec(name, tuple(shape), dtype) for name, (shape, dtype) in content.items())
    arrays = {spec.name: np.ones(spec.shape, spec.dtype) for spec in specs}
    header = header_bytes(specs, {"b": "2", "a": "1"})
    assert len(header) % 8 == 0
    loaded = safetensors.numpy.load(header + b"".join(arrays[spec.name].tobytes() for spec in specs))
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
    assert header == header_bytes(specs, {"a": "1", "b": "2"})


def test_dtype_names_are_those_of_the_library() -> None:
    """Every dtype that the library knows under torch's name has the same name here."""
    from safetensors.torch import _TYPES

    assert {name: str(dtype).removeprefix("torch.") for name, dtype in _TYPES.items()} == {
        dtype.safetensors: name for name, dtype in DTYPES.items() if dtype.safetensors in _TYPES
    }
