"""Flax's MessagePack files: read from files made byte by byte; every length and kind that can lie is made to."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.artifacts import TensorRef, walk
from exporter.checkpoint import open_checkpoint
from exporter.errors import CheckpointError
from exporter.tensors import read_tensor
from tests.checkpoint.flax_files import CHUNKED, array, chunked, extension, packed, raw, text

TREE = {
    "params": {"dense": {"kernel": np.arange(6, dtype="f4").reshape(2, 3), "bias": np.zeros(0, "f8")}},
    "step": np.int32(7),
    "lr": 0.5,
    "phase": 1 + 2j,
    "name": "n" * 40,
    "none": None,
    "flag": True,
    "count": -3,
}


def write(folder: Path, content: bytes) -> Path:
    path = folder / "state.msgpack"
    path.write_bytes(content)
    return path


def read_all(path: Path) -> Any:
    """Open the file and read every tensor of it."""
    checkpoint = open_checkpoint(path)
    for _, node in walk(checkpoint.root):
        if isinstance(node, TensorRef):
            read_tensor(node)
    return checkpoint


def refused(folder: Path, content: bytes) -> CheckpointError:
    """Return the error that reading ``content`` ends with."""
    path = write(folder, content)
    with pytest.raises(CheckpointError) as error:
        read_all(path)
    return error.value


def test_arrays_are_ranges_of_the_file(tmp_path: Path) -> None:
    """Arrays and NumPy's scalars are tensors, all else is plain values."""
    path = write(tmp_path, packed(TREE))
    checkpoint = open_checkpoint(path)
    assert checkpoint.container == "Flax msgpack"
    kernel = checkpoint.root["params"]["dense"]["kernel"]
    assert (kernel.storage.path, kernel.storage.key, kernel.storage.size_bytes) == (path, "params/dense/kernel", 24)
    assert np.array_equal(read_tensor(kernel), TREE["params"]["dense"]["kernel"])
    assert read_tensor(checkpoint.root["params"]["dense"]["bias"]).shape == (0,)
    assert read_tensor(checkpoint.root["step"]) == 7
    assert {key: checkpoint.root[key] for key in ("lr", "phase", "name", "none", "flag", "count")} == {
        key: TREE[key] for key in ("lr", "phase", "name", "none", "flag", "count")
    }


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint32", "int64", "bool", "complex64"])
def test_dtypes(dtype: str, tmp_path: Path) -> None:
    """Each is called as NumPy calls it."""
    value = np.array([0, 1, 1], dtype)
    found = read_tensor(open_checkpoint(write(tmp_path, packed({"params": value}))).root["params"])
    assert (found.dtype, found.tobytes()) == (value.dtype, value.tobytes())


def test_bfloat16_is_a_name_of_its_own(tmp_path: Path) -> None:
    """The bytes are taken as they are."""
    content = packed({"params": array(np.array([0x3F80], "u2"), dtype="bfloat16")})
    assert float(read_tensor(open_checkpoint(write(tmp_path, content)).root["params"])[0]) == 1.0


@pytest.mark.parametrize("size", [1, 2, 5, 6, 7, 12, 23, 24, 60])
@pytest.mark.parametrize("shape", [(24,), (4, 6), (2, 3, 4), (1, 24, 1)])
def test_chunks_are_put_together(shape: tuple[int, ...], size: int, tmp_path: Path) -> None:
    """Wherever a chunk ends within the rows of the array, each element has its place."""
    value = np.arange(24, dtype="i4").reshape(shape)
    ref = open_checkpoint(write(tmp_path, packed({"params": chunked(value, size)}))).root["params"]
    assert np.array_equal(read_tensor(ref), value)


VALUE = np.arange(24, dtype="i4").reshape(4, 6)
SEVEN = chunked(VALUE, 7)


@pytest.mark.parametrize(
    "tree",
    {
        "a chunk is missing": {**SEVEN, "chunks": {key: chunk for key, chunk in SEVEN["chunks"].items() if key != "3"}},
        "a chunk in the middle is missing": {**SEVEN, "chunks": {key: chunk for key, chunk in SEVEN["chunks"].items() if key != "1"}},
        "one too many": {**SEVEN, "chunks": {**SEVEN["chunks"], "4": np.zeros(1, "i4")}},
        "no chunks": {**SEVEN, "chunks": {}},
        "another dtype": {**SEVEN, "chunks": {**SEVEN["chunks"], "3": np.zeros(3, "f4")}},
        "a chunk with axes": {**SEVEN, "chunks": {**SEVEN["chunks"], "3": np.zeros((3, 1), "i4")}},
        "a chunk that is text": {**SEVEN, "chunks": {**SEVEN["chunks"], "3": "abc"}},
        "no shape": {CHUNKED: True, "chunks": SEVEN["chunks"]},
        "a shape of text": {**SEVEN, "shape": {"0": "4", "1": 6}},
        "a negative shape": {**SEVEN, "shape": {"0": -4, "1": -6}},
        "a shape without elements": {**SEVEN, "shape": {"0": 0, "1": 6}},
        "a shape beyond measure": {**SEVEN, "shape": {str(axis): 1 << 40 for axis in range(90)}},
        "something beside": {**SEVEN, "more": 1},
    }.items(),
    ids=lambda case: case[0],
)
def test_chunks_that_do_not_fit_are_refused(tree: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    """Chunks make up their array exactly."""
    assert refused(tmp_path, packed({"params": tree[1]})).code == "E144"


ONE = np.ones((2, 2), "f4")


@pytest.mark.parametrize(
    ("code", "content"),
    [
        pytest.param("E144", packed(TREE)[:-1], id="cut off"),
        pytest.param("E144", packed(TREE) + b"\0", id="bytes behind the end"),
        pytest.param("E144", packed({"a": array(ONE, shape=(2, 3))}), id="shape beyond the bytes"),
        pytest.param("E144", packed({"a": array(ONE, shape=(-2, -2))}), id="negative shape"),
        pytest.param("E144", packed({"a": array(ONE, shape=(True, 4))}), id="shape of booleans"),
        pytest.param("E144", packed({"a": array(ONE, shape=(1 << 61, 1 << 61, 0))}), id="shape that hides in a zero"),
        pytest.param("E144", packed({"a": array(ONE, shape=(1,) * 63 + (2, 2))}), id="too many axes"),
        pytest.param("E113", packed({"a": array(ONE, dtype="object")}), id="objects"),
        pytest.param("E113", packed({"a": array(ONE, dtype="int4")}), id="four bits"),
        pytest.param("E144", packed({"a": extension(1, b"\x93\x90" + text("float32") + raw(bytes(4)) + b"\0")}), id="bytes behind an array"),
        pytest.param("E144", packed({"a": extension(1, b"\x92\x90" + text("float32"))}), id="array without bytes"),
        pytest.param("E144", packed({"a": extension(1, b"\x93\x90" + text("float32") + text("abcd"))}), id="array of text"),
        pytest.param("E144", packed({"a": extension(2, b"\x92" + text("1") + packed(1.0))}), id="complex text"),
        pytest.param("E144", packed({"a": extension(2, b"\x91" + packed(1.0))}), id="half a complex number"),
        pytest.param("E144", packed({"a": extension(5, b"abc")}), id="unknown extension"),
        pytest.param("E144", packed({"a": extension(-1, bytes(8))}), id="time"),
        pytest.param("E144", packed({"a": b"\xc1"}), id="a byte that begins nothing"),
        pytest.param("E144", packed({"a": b"\xdd\xff\xff\xff\xff"}), id="a list longer than the file"),
        pytest.param("E144", packed({"a": b"\xdf\xff\xff\xff\xff"}), id="a map longer than the file"),
        pytest.param("E144", packed({"a": b"\xc6\xff\xff\xff\xff"}), id="bytes beyond the file"),
        pytest.param("E144", packed({"a": b"\xc9\xff\xff\xff\xff\x01"}), id="an extension beyond the file"),
        pytest.param("E144", packed({"a": b"\xdb\xff\xff\xff\xff"}), id="text beyond the file"),
        pytest.param("E144", packed({"a": b"\xda\xff\xff" + bytes(70_000)}), id="zeros behind text"),
        pytest.param("E144", packed({"a": b"\xa2\xff\xfe"}), id="text that is no text"),
        pytest.param("E144", b"\x82" + (text("a") + b"\0") * 2, id="a key twice"),
        pytest.param("E144", b"\x82" + text("1") + b"\0" + b"\1\0", id="a key twice, as text and number"),
        pytest.param("E144", b"\x82" + text("a") + b"\0\xc0\0", id="no key"),
        pytest.param("E144", b"\x82" + text("a") + b"\0\x90\0", id="a list for a key"),
        pytest.param("E144", packed({"a": b"\x91" * 200_000 + b"\0"}), id="deeper than any tree"),
        pytest.param("E144", packed({"a": b"\xdd\x00\x03\x00\x00" + bytes(0x30000) * 2}), id="more values than a tree has"),
    ],
)
def test_files_that_lie_are_refused(code: str, content: bytes, tmp_path: Path) -> None:
    """Before anything is allocated for what they say."""
    assert refused(tmp_path, content).code == code


def test_bytes_and_lists_are_plain(tmp_path: Path) -> None:
    """Runs of bytes that are no array are not read; lists are lists, numbers as keys become text."""
    content = b"\x83" + text("a") + raw(b"x" * 9) + text("b") + b"\x92\1\2" + b"\3" + b"\0"
    assert open_checkpoint(write(tmp_path, content)).root == {"a": "9 bytes, not read", "b": [1, 2], "3": 0}


@pytest.mark.parametrize("content", [b"\x80", b"\x81\x01\x02", b"\x90", b"\x93abc", b"\xde\x00\x01\xff" + bytes(9)])
def test_other_files_are_not_taken_for_it(content: bytes, tmp_path: Path) -> None:
    """A tree begins with a key that is text."""
    assert refused(tmp_path, content + bytes(30)).code in {"E105", "E130"}


@settings(max_examples=300)
@given(st.data())
def test_damage_ends_in_a_refusal_or_in_other_values(tmp_path: Path, data: st.DataObject) -> None:
    """There are no checksums; but nothing else than an error of ours comes of damage."""
    content = bytearray(packed({**TREE, "big": chunked(VALUE, 7)}))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = write(tmp_path, bytes(content[: data.draw(st.integers(1, len(content)))]))
    with contextlib.suppress(CheckpointError):
        read_all(path)
