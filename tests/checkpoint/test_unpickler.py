"""The inert unpickler reads plain data as pickle does, and refuses what breaks the rules."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import pickle
import random
import zipfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from exporter.artifacts import ObjectRef
from exporter.checkpoint import open_checkpoint
from exporter.checkpoint.pickle_calls import MAX_DEPTH
from exporter.checkpoint.pickle_ops import MalformedPickle, Unpickler
from exporter.errors import CheckpointError

KEYS = st.one_of(st.text(max_size=8), st.integers(-(2**63), 2**63), st.booleans(), st.none(), st.binary(max_size=4))
LEAVES = st.one_of(
    KEYS,
    st.integers(-(2**600), 2**600),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.frozensets(KEYS, max_size=4),
    st.sets(KEYS, max_size=4),
)
PLAIN = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.tuples(inner, inner), st.tuples(inner), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=25,
)


@given(value=PLAIN, protocol=st.integers(0, 5))
@settings(max_examples=300)
def test_plain_data_as_pickle_reads_them(value: object, protocol: int) -> None:
    """For every protocol the tree equals what pickle gives, with the same types, and nothing was called."""
    unpickler = Unpickler(pickle.dumps(value, protocol))
    tree = unpickler.load()
    assert tree == value
    assert repr(type(tree)) == repr(type(value))
    assert not unpickler.calls


@pytest.mark.parametrize("protocol", range(6))
def test_shared_and_cyclic_containers_stay_shared(protocol: int) -> None:
    """A list that holds itself, and one held twice, are one list."""
    cycle: list[object] = [1]
    cycle.append(cycle)
    tree = Unpickler(pickle.dumps([cycle, cycle], protocol)).load()
    assert tree[0] is tree[1]
    assert tree[0][1] is tree[0]


@pytest.mark.parametrize("protocol", range(6))
def test_containers_of_the_standard_library(protocol: int) -> None:
    """Ordered, default and counting dicts become dicts; a bytearray becomes bytes."""
    value = [collections.OrderedDict(a=1, b=[2]), collections.defaultdict(list, c=3), collections.Counter("aab"), bytearray(b"xy")]
    assert Unpickler(pickle.dumps(value, protocol)).load() == [{"a": 1, "b": [2]}, {"c": 3}, {"a": 2, "b": 1}, b"xy"]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(argparse.Namespace(lr=0.1, model="resnet18"), id="Namespace"),
        pytest.param(pathlib.PurePosixPath("a/b"), id="path"),
        pytest.param(datetime.timedelta(seconds=1), id="timedelta"),
        pytest.param(np.float64(0.5), id="numpy scalar"),
        pytest.param(np.arange(3), id="numpy array"),
        pytest.param(collections.deque([1, 2], maxlen=4), id="deque"),
        pytest.param(np.random.default_rng(0).bit_generator, id="generator state"),
    ],
)
def test_what_trainers_write_stays_an_inert_record(value: object, protocol: int) -> None:
    """Such values become records that can be looked at, and are no calls that refuse a file."""
    unpickler = Unpickler(pickle.dumps(value, protocol))
    assert isinstance(unpickler.load(), ObjectRef)
    assert not unpickler.calls


def nested(depth: int) -> bytes:
    """Return a pickle of ``depth`` lists inside one another."""
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


BAD = {
    "no end": (b"\x80\x02}", "E110"),
    "bytes after the end": (b"\x80\x02}.}.", "E110"),
    "protocol 6": (b"\x80\x06}.", "E110"),
    "empty stack": (b"\x80\x02R.", "E110"),
    "no mark": (b"\x80\x02t.", "E110"),
    "left over": (b"\x80\x02}}.", "E110"),
    "unwritten memo entry": (b"\x80\x02h\x07.", "E110"),
    "far memo entry": (b"\x80\x02j\xff\xff\xff\x7f.", "E110"),
    "item set on a tuple": (b"\x80\x02)K\x01K\x02s.", "E110"),
    "value appended to a dict": (b"\x80\x02}K\x01a.", "E110"),
    "list as key": (b"\x80\x02}]K\x01s.", "E110"),
    "call of text": (b"\x80\x02X\x01\x00\x00\x00f)R.", "E110"),
    "call without tuple": (b"\x80\x02cos\nsystem\n]R.", "E110"),
    "declared length beyond the file": (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x3fabc.", "E110"),
    "huge integer": (b"\x80\x02\x8b\x00\x10\x00\x00" + b"\x7f" * 4096 + b".", "E111"),
    "huge key": (b"\x80\x02}\x8a\x09" + b"\x7f" * 9 + b"K\x01s.", "E111"),
    "deep lists": (nested(MAX_DEPTH + 2), "E111"),
    "very deep lists": (nested(200_000), "E111"),
    "deep tuple as key": (b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.", "E111"),
    "out-of-band buffer": (b"\x80\x05\x97.", "E110"),
    "text persistent id": (b"P1\n.", "E110"),
    "state on a tensor's name": (b"\x80\x02X\x01\x00\x00\x00f}b.", "E110"),
    "dtype that is none": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v3\n(NK\x00))\x89}ctorch\nevil\ntR.", "E113"),
    "tensor without storage": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))\x89}tR.", "E110"),
    "stack global of numbers": (b"\x80\x04K\x01K\x02\x93.", "E110"),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_pickle_is_refused_in_one_message(case: str, write_zip) -> None:
    """Each breach of the rules ends in a CheckpointError that says where."""
    pickled, code = BAD[case]
    with pytest.raises(CheckpointError, match="pickle") as refused:
        open_checkpoint(write_zip(pickled))
    assert refused.value.code == code
    assert "data.pkl, byte" in refused.value.facts["at"]


def test_copies_are_bounded() -> None:
    """A small pickle that copies one list over and over is refused before memory is."""
    items = b"(" + b"X\x01\x00\x00\x00a" * 2000 + b"l"
    pickled = b"\x80\x02" + items + b"q\x00" + b"0cbuiltins\nset\nq\x010(" + b"h\x01h\x00\x85R" * 5000 + b"t."
    with pytest.raises(MalformedPickle, match="copies"):
        Unpickler(pickled).load()


def test_damaged_pickles_give_a_message_or_a_tree(digits: Path) -> None:
    """Whatever bytes are changed in a real pickle, nothing but MalformedPickle is raised."""
    with zipfile.ZipFile(digits / "digits.pt") as archive:
        content = archive.read("digits/data.pkl")
    rng = random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 8))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            Unpickler(bytes(damaged[: rng.choice((len(damaged), rng.randrange(len(damaged))))])).load()
        except MalformedPickle:
            refused += 1
    assert refused > 100
