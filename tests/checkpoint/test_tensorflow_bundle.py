"""TensorFlow's checkpoints: read from files made byte by byte; every field that can lie is made to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.artifacts import TensorRef, walk
from exporter.checkpoint import open_checkpoint
from exporter.checkpoint.protobuf import Malformed, fields
from exporter.checkpoint.sorted_table import unmasked
from exporter.checkpoint.tensorflow_entries import Slice, slice_key
from exporter.errors import CheckpointError
from exporter.tensors import read_tensor
from exporter.tensors.crc32c import crc32c
from tests.checkpoint.bundles import GRAPH, Bundle, Entry, block, header, masked, message, number, object_graph, table, varint

VALUES = {
    "net/w": np.arange(6, dtype="f4").reshape(2, 3),
    "net/wide": np.arange(4, dtype="f8"),
    "net/half": np.arange(3, dtype="f2"),
    "net/flags": np.array([True, False]),
    "net/empty": np.zeros((0, 3), "f4"),
    "global_step": np.array(7, "i8"),
}


def bundle() -> Bundle:
    """Return the checkpoint that most tests begin with."""
    made = Bundle()
    for name, value in VALUES.items():
        made.add(name, value)
    return made


def refused(path: Path) -> CheckpointError:
    """Return the error that opening ``path``, and reading all of it, ends with."""
    with pytest.raises(CheckpointError) as error:
        read_all(path)
    return error.value


def read_all(path: Path) -> None:
    """Open the checkpoint and read every tensor of it."""
    for _, node in walk(open_checkpoint(path).root):
        if isinstance(node, TensorRef):
            read_tensor(node)


@pytest.mark.parametrize("named", ["index", "prefix", "folder", "only one"])
def test_tensors_are_ranges_of_the_data_file(named: str, tmp_path: Path) -> None:
    """Index, prefix, a folder with the state file, and one with a single index name the same checkpoint."""
    index = bundle().write(tmp_path)
    if named == "folder":
        Bundle().write(tmp_path, "model-0")
        (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/model-1"\nall_model_checkpoint_paths: "model-0"\n')
    path = {"index": index, "prefix": tmp_path / "model-1"}.get(named, tmp_path)
    checkpoint = open_checkpoint(path)
    assert (checkpoint.path, checkpoint.container) == (path, "TensorFlow")
    assert checkpoint.files == (index, tmp_path / "model-1.data-00000-of-00001")
    assert checkpoint.size_bytes == sum(file.stat().st_size for file in checkpoint.files)
    assert set(checkpoint.root["variables"]) == set(VALUES)
    for name, value in VALUES.items():
        found = read_tensor(checkpoint.root["variables"][name])
        assert (found.dtype, found.shape, found.tobytes()) == (value.dtype, value.shape, value.tobytes())


def test_it_is_known_by_content(tmp_path: Path) -> None:
    """The suffix plays no part in recognising the index; the data files go by its name."""
    index = bundle().write(tmp_path)
    index.rename(tmp_path / "model-1")
    assert open_checkpoint(tmp_path / "model-1").container == "TensorFlow"


def test_contents_identify_it(tmp_path: Path) -> None:
    """The index holds a checksum of every tensor, so it stands for them."""
    one, same = (open_checkpoint(bundle().write(tmp_path, name)) for name in ("a", "b"))
    other = open_checkpoint(bundle().add("more", np.ones(1, "f4")).write(tmp_path, "c"))
    assert one.contents == same.contents != other.contents
    assert one.contents is not None
    assert one.contents.of == "contents"


def test_a_flipped_bit_in_a_tensor_is_found(tmp_path: Path) -> None:
    """CRC-32C over the bytes that are read."""
    made = bundle()
    made.data = made.data[:5] + bytes([made.data[5] ^ 4]) + made.data[6:]
    error = refused(made.write(tmp_path))
    assert error.code == "E109"
    assert "CRC-32C" in str(error)


def parts(extents: list[list[tuple[int, int | None]]]) -> Bundle:
    """Return a variable of 4 x 6 in slices."""
    whole, made = np.arange(24, dtype="f4").reshape(4, 6), Bundle()
    for box in extents:
        cut = whole[tuple(slice(start, None if length is None else start + length) for start, length in box)]
        key = slice_key(b"emb", Slice(tuple(start for start, _ in box), tuple(-1 if length is None else length for _, length in box)))
        made.add(key, np.ascontiguousarray(cut))
    made.entries[b"emb"] = Entry(1, (4, 6), slices=extents)
    return made


@pytest.mark.parametrize(
    "extents",
    [
        pytest.param([[(0, 2), (0, None)], [(2, 2), (0, None)]], id="rows"),
        pytest.param([[(0, None), (0, 2)], [(0, None), (2, 4)]], id="columns"),
        pytest.param([[(0, 1), (0, 6)], [(1, 3), (0, 5)], [(1, 3), (5, 1)]], id="uneven"),
        pytest.param([[(0, None), (0, None)]], id="one for all"),
    ],
)
def test_slices_are_put_together(extents: list[list[tuple[int, int | None]]], tmp_path: Path) -> None:
    """A partitioned variable is read as one tensor, each slice verified."""
    ref = open_checkpoint(parts(extents).write(tmp_path)).root["variables"]["emb"]
    assert np.array_equal(read_tensor(ref), np.arange(24, dtype="f4").reshape(4, 6))


@pytest.mark.parametrize(
    "extents",
    [
        pytest.param([[(0, 2), (0, None)]], id="gap"),
        pytest.param([[(0, 3), (0, None)], [(2, 2), (0, None)]], id="overlap"),
        pytest.param([[(0, None)]], id="too few axes"),
    ],
)
def test_slices_that_do_not_tile_are_refused(extents: list[list[tuple[int, int | None]]], tmp_path: Path) -> None:
    """Each element stands in exactly one slice."""
    made = parts(extents)
    assert refused(made.write(tmp_path)).code == "E141"


def test_a_slice_that_is_missing_is_refused(tmp_path: Path) -> None:
    """The entry of a variable names its slices; each must be in the index, with the shape that was said."""
    made = parts([[(0, 2), (0, None)], [(2, 2), (0, None)]])
    key = next(key for key in made.entries if key.startswith(b"\0"))
    made.entries[key] = replace(made.entries[key], shape=(3, 4))
    assert "no slice" in str(refused(made.write(tmp_path)))
    del made.entries[key]
    assert "no slice" in str(refused(made.write(tmp_path)))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "80"),
        (63, "bf"),
        (64, "c040"),
        (-1, "7f"),
        (-64, "40"),
        (-65, "3fbf"),
        (8191, "dfff"),
        (8192, "e02000"),
        (1 << 62, "ffc04000000000000000"),
    ],
)
def test_sortable_numbers(value: int, expected: str) -> None:
    """The form that sorts like the numbers: a bit for each byte, then the bits of the number."""
    key = slice_key(b"v", Slice((value,), (0,)))
    assert key == b"\x00v\x00\x01\x01\x01" + bytes.fromhex(expected) + b"\x80"


def test_names_are_escaped_in_slices() -> None:
    """Zero and 255 are escaped, so that the name ends where it ends."""
    assert slice_key(b"a\0b\xff", Slice((), ())) == b"\x00a\x00\xffb\xff\x00\x00\x01\x00"


def test_text_is_not_read(tmp_path: Path) -> None:
    """A vocabulary is no weight."""
    made = bundle().add_text("words", b"abc")
    assert open_checkpoint(made.write(tmp_path)).root["variables"]["words"] == "text of shape (), not read"


OBJECTS = [
    {"children": {"model": 1, "optimizer": 2}},
    {"variable": ("dense/kernel", "model/kernel")},
    {"slots": [(1, "average", 3)]},
    {"variable": ("dense/kernel/average", "slot")},
]


def test_the_object_graph(tmp_path: Path) -> None:
    """Objects become plain values with the numbers of their children."""
    checkpoint = open_checkpoint(bundle().add_text(GRAPH, object_graph(OBJECTS)).write(tmp_path))
    root, kernel, optimizer, _ = checkpoint.root["objects"]
    assert root == {"children": {"model": 1, "optimizer": 2}, "variables": [], "slots": []}
    assert kernel["variables"] == [{"full_name": "dense/kernel", "key": "model/kernel"}]
    assert optimizer["slots"] == [{"of": 1, "slot": "average", "variable": 3}]
    assert GRAPH not in checkpoint.root["variables"]


@pytest.mark.parametrize(
    "graph",
    {
        "no object": b"",
        "a child that is not there": object_graph([{"children": {"a": 1}}]),
        "a negative child": object_graph([{"children": {"a": -1}}]),
        "a slot of nothing": object_graph([{"slots": [(0, "m", 9)]}]),
        "a child that is a number": message(1, number(1, 5)),
        "a name that is a number": message(1, message(1, number(1, 0) + number(2, 3))),
        "a name that is no text": message(1, message(1, number(1, 0) + message(2, b"\xff\xfe"))),
        "cut off": object_graph(OBJECTS)[:-3],
    }.items(),
    ids=lambda case: case[0],
)
def test_a_bad_object_graph_is_refused(graph: tuple[str, bytes], tmp_path: Path) -> None:
    """Whatever the graph says of objects that it does not have."""
    assert refused(bundle().add_text(GRAPH, graph[1]).write(tmp_path)).code == "E140"


def test_a_damaged_object_graph_is_found(tmp_path: Path) -> None:
    """Its checksum goes over the length too."""
    made = bundle().add_text(GRAPH, object_graph(OBJECTS))
    made.data = made.data[:-1] + bytes([made.data[-1] ^ 1])
    assert refused(made.write(tmp_path)).code == "E109"


def changed(name: str = "net/w", **changes: object) -> Callable[[Bundle], None]:
    """Return a change of one entry."""

    def change(made: Bundle) -> None:
        made.entries[name.encode()] = replace(made.entries[name.encode()], **changes)

    return change


def described(text: bytes) -> Callable[[Bundle], None]:
    """Return a change of the header."""

    def change(made: Bundle) -> None:
        made.header = text

    return change


@pytest.mark.parametrize(
    ("code", "change"),
    [
        pytest.param("E141", changed(offset=1 << 40), id="offset beyond the file"),
        pytest.param("E140", changed(offset=-1), id="offset below zero"),
        pytest.param("E141", changed(size=20), id="size too small"),
        pytest.param("E141", changed(size=1 << 40), id="size beyond the file"),
        pytest.param("E141", changed("net/wide", offset=8), id="overlap"),
        pytest.param("E141", changed(shape=(1 << 40, 1 << 40)), id="shape beyond measure"),
        pytest.param("E140", changed(shape=(-1, 3)), id="negative axis"),
        pytest.param("E140", changed(shape=(1,) * 65), id="too many axes"),
        pytest.param("E141", changed(shard=1), id="data file that is not there"),
        pytest.param("E141", changed(shard=-1), id="negative data file"),
        pytest.param("E113", changed(dtype=20), id="resource"),
        pytest.param("E113", changed(dtype=99), id="unknown dtype"),
        pytest.param("E109", changed(crc=1), id="another checksum"),
        pytest.param("E108", described(header(endianness=1)), id="big-endian"),
        pytest.param("E140", described(header(shards=0)), id="no data files"),
        pytest.param("E141", described(header(shards=2)), id="data files renamed"),
        pytest.param("E140", described(message(1, b"x")), id="header of text"),
        pytest.param("E140", described(b"\xff"), id="header cut off"),
    ],
)
def test_entries_that_lie_are_refused(code: str, change: Callable[[Bundle], None], tmp_path: Path) -> None:
    """Each with the code that says where the lie is."""
    made = bundle()
    change(made)
    assert refused(made.write(tmp_path)).code == code


def test_a_missing_or_short_data_file_is_named(tmp_path: Path) -> None:
    """The message has the name of the file."""
    index = bundle().write(tmp_path)
    data = tmp_path / "model-1.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1])
    assert data.name in str(refused(index))
    data.unlink()
    error = refused(index)
    assert (error.code, data.name in str(error)) == ("E141", True)


def test_links_stay_beside_the_index(tmp_path: Path) -> None:
    """A data file that is a link to elsewhere is refused; index and data that are links into one folder, as in a model hub's cache, are read."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    index = bundle().write(tmp_path / "blobs")
    data = tmp_path / "blobs" / "model-1.data-00000-of-00001"
    for path in (index, data):
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert read_tensor(open_checkpoint(tmp_path / "snapshot" / index.name).root["variables"]["net/w"]).shape == (2, 3)
    (tmp_path / "snapshot" / index.name).unlink()
    bundle().write(tmp_path, "other")
    (tmp_path / "other.index").rename(tmp_path / "snapshot" / index.name)
    assert refused(tmp_path / "snapshot" / index.name).code == "E116"


@pytest.mark.parametrize(
    "state", ["", 'model_checkpoint_path: "gone"', 'model_checkpoint_path: ".."', "model_checkpoint_path: model-1", 'model_checkpoint_path: "a\\nb"']
)
def test_a_state_file_that_names_nothing(state: str, tmp_path: Path) -> None:
    """The newest checkpoint must be in the folder."""
    bundle().write(tmp_path)
    (tmp_path / "checkpoint").write_text(state)
    assert refused(tmp_path).code == "E143"


def bad_block(content: bytes) -> bytes:
    """Return an index whose only block is ``content``, its checksum right."""

    def stored(part: bytes) -> bytes:
        return part + b"\0" + masked(crc32c(part + b"\0")).to_bytes(4, "little")

    blocks = stored(content)
    handles = block([(b"\xff" * 8, varint(0) + varint(len(content)))], interval=1)
    footer = (varint(0) + varint(len(content)) + varint(len(blocks)) + varint(len(handles))).ljust(40, b"\0")
    return blocks + stored(handles) + footer + bytes.fromhex("57fb808b247547db")


SMALL = Entry().encoded()
HEADER_ROW = b"\0\0" + varint(len(header())) + header()
ENDING = b"\0\0\0\0\x01\0\0\0"


@pytest.mark.parametrize(
    "index",
    {
        "no header": table({b"a": header()}),
        "keys out of order": table({b"": header(), b"b": Entry().encoded(), b"a": Entry().encoded()}, ordered=False),
        "keys out of order over blocks": table({b"": header(), b"b": Entry().encoded(), b"a": Entry().encoded()}, ordered=False, per_block=1),
        "an empty block": bad_block(b""),
        "no restarts": bad_block(b"\0\0\0\0"),
        "restarts beyond the block": bad_block(b"\xff\0\0\0\x01\0\0\0"),
        "more restarts than bytes": bad_block(b"\0\0\0\0\xff\xff\xff\x7f"),
        "restarts twice": bad_block(b"\0\0\0" + b"\0\0\0\0" * 2 + b"\x02\0\0\0"),
        "a shared part of no key": bad_block(b"\x05\x00\x00" + ENDING),
        "a value beyond the block": bad_block(b"\x00\x00\x7f" + ENDING),
        "a number that does not end": bad_block(b"\xff\xff" + ENDING),
        "a number of more than 64 bits": bad_block(b"\xff" * 9 + b"\x7f\x00\x00" + ENDING),
        "a restart within an entry": bad_block(HEADER_ROW + b"\0\0\0\0\x02\0\0\0\x02\0\0\0"),
        "nothing but a footer": bytes(40) + bytes.fromhex("57fb808b247547db"),
        "handles beyond the file": (varint(0) + varint(9) + varint(1 << 60) + varint(9)).ljust(40, b"\0") + bytes.fromhex("57fb808b247547db"),
        "a key that is no text": table({b"": header(), b"\xff\xfe": Entry().encoded()}),
        "an entry cut off": table({b"": header(), b"a": b"\x12\x7f"}),
        "a field of an old type": table({b"": header(), b"a": b"\x0b"}),
        "a field with number zero": table({b"": header(), b"a": b"\x00\x00"}),
    }.items(),
    ids=lambda case: case[0],
)
def test_a_table_that_lies_is_refused(index: tuple[str, bytes], tmp_path: Path) -> None:
    """Lengths, offsets, restarts and the order of keys."""
    path = tmp_path / "a.index"
    path.write_bytes(index[1])
    (tmp_path / "a.data-00000-of-00001").write_bytes(b"")
    error = refused(path)
    assert error.code == "E140"
    assert ("begins with no header" in str(error)) == (index[0] == "no header")


def test_a_compressed_table_is_refused_by_name(tmp_path: Path) -> None:
    """TensorFlow does not compress; LevelDB can."""
    error = refused(bundle().write(tmp_path, compression=1))
    assert error.code == "E142"
    assert "method 1" in str(error)


def test_keys_that_grow_are_bounded(tmp_path: Path) -> None:
    """A key may share with the one before, so few bytes could stand for many: keys have a limit."""
    rows = HEADER_ROW + b"".join(varint(n) + b"\x01" + varint(len(SMALL)) + b"b" + SMALL for n in range(5000))
    path = tmp_path / "a.index"
    path.write_bytes(bad_block(rows + ENDING))
    assert "shares" in str(refused(path))


def test_masking() -> None:
    """A masked checksum is turned back."""
    assert all(unmasked(masked(value)) == value for value in (0, 1, 0xFFFFFFFF, 0x12345678))


@given(st.binary(max_size=64))
def test_any_bytes_are_fields_or_malformed(content: bytes) -> None:
    """The wire format is read to its end or refused, with no other error."""
    try:
        for number_of_field, value in fields(content):
            assert number_of_field > 0
            assert isinstance(value, (int, bytes))
    except Malformed:
        pass


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_index_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Any byte of the index may differ, and it may end anywhere: the checkpoint is refused, or as it was where padding was hit."""
    made = bundle().add_text(GRAPH, object_graph(OBJECTS))
    path = made.write(tmp_path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="cut"):
        content = content[: data.draw(st.integers(1, len(content) - 1))]
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        found = open_checkpoint(path)
    except CheckpointError:
        return
    assert {name: read_tensor(ref).tobytes() for name, ref in found.root["variables"].items()} == {n: v.tobytes() for n, v in VALUES.items()}


@settings(max_examples=300)
@given(st.data())
def test_rows_that_were_tampered_with(tmp_path: Path, data: st.DataObject) -> None:
    """With the checksums of the table made right again, what the rows say is refused or lies within the data file."""
    made = bundle().add_text(GRAPH, object_graph(OBJECTS))
    rows = made.rows()
    key = data.draw(st.sampled_from(sorted(rows)))
    row = bytearray(rows[key])
    row[data.draw(st.integers(0, len(row) - 1))] = data.draw(st.integers(0, 255))
    path = made.write(tmp_path)
    path.write_bytes(table(rows | {key: bytes(row)}))
    with contextlib.suppress(CheckpointError):
        read_all(path)
