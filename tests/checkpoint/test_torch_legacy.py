"""Files of torch before 1.6, written by torch itself: the same tensors, and nothing that lies about its bytes."""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import CheckpointError, InputRefused
from exporter.weights import bake
from tests.checkpoint.tensor_forms import bytes_of, every_form, same_bytes, write


def saved(value: object, **options: object) -> bytes:
    """Return what torch.save wrote before 1.6."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_dtype_and_view_as_torch_loads_it(protocol: int, tmp_path: Path) -> None:
    """Each tensor has the dtype, shape and bytes that it had, whatever the protocol of the pickles."""
    checkpoint = open_checkpoint(write(tmp_path / "x.pt", saved(every_form(), pickle_protocol=protocol)))
    assert checkpoint.container == "torch legacy"
    assert not checkpoint.calls
    same_bytes(checkpoint.root, every_form())


def test_every_tensor_that_torch_loads_is_the_same_here(tmp_path: Path) -> None:
    """torch.load gives the same names, dtypes, shapes and bytes; float8 and large unsigned integers it cannot load from this form."""
    known = {name: tensor for name, tensor in every_form().items() if not any(word in name for word in ("float8", "uint16", "uint32", "uint64"))}
    path = write(tmp_path / "x.pt", saved(known))
    same_bytes(open_checkpoint(path).root, torch.load(path, weights_only=False))


def test_views_share_their_storage(tmp_path: Path) -> None:
    """Tensors that shared memory when they were saved look into the same bytes."""
    root = open_checkpoint(write(tmp_path / "x.pt", saved(every_form()))).root
    assert root["whole"].storage is root["transposed"].storage
    assert root["whole"].storage != root["of its own"].storage


def test_a_part_of_a_storage_is_read_where_it_stands(tmp_path: Path) -> None:
    """The oldest files name parts of a storage: element ``begin`` on, as torch reads it."""
    content = saved({"w": torch.arange(6.0)})
    at = content.index(b"K\x06Nt")
    part = content[:at] + b"K\x06(X\x01\x00\x00\x00vK\x02K\x03tt" + content[at + 4 :]
    part = part.replace(b"K\x00K\x06\x85", b"K\x00K\x03\x85")
    path = write(tmp_path / "x.pt", part)
    same_bytes(open_checkpoint(path).root, torch.load(path, weights_only=False))
    assert bytes_of(torch.load(path, weights_only=False)["w"]) == bytes_of(torch.tensor([2.0, 3.0, 4.0]))


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source")
def test_a_pickled_module_is_inert_and_its_source_stays_text(tmp_path: Path) -> None:
    """The old form stores the source of a module's class beside it; nobody reads it, and the weights are the module's."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    path = write(tmp_path / "x.pt", saved({"model": module}))
    assert b"class Linear" in path.read_bytes()
    checkpoint = open_checkpoint(path)
    assert not checkpoint.calls
    out = bake(checkpoint, BakeConfig(choice="raw"), tmp_path / "out.safetensors")
    state = module.state_dict()
    root = open_checkpoint(out.path).root
    same_bytes({name: root[name] for name in state}, state)


def test_average_is_baked(tmp_path: Path) -> None:
    """An average in such a file bakes to the bytes that torch loads."""
    raw, ema = {"w": torch.ones(3), "n": torch.tensor(4)}, {"w": torch.full((3,), 0.5), "n": torch.tensor(4)}
    path = write(tmp_path / "x.pt", saved({"state_dict": raw, "state_dict_ema": ema}))
    weights = bake(open_checkpoint(path), BakeConfig(), tmp_path / "out.safetensors")
    root = open_checkpoint(weights.path).root
    same_bytes({name: root[name] for name in ema}, torch.load(path, weights_only=True)["state_dict_ema"])


def test_truncated_at_any_byte_is_refused(tmp_path: Path) -> None:
    """Whatever is missing at the end, the file is refused, naming it and the reason."""
    content = saved({"w": torch.ones(3, 2), "b": torch.ones(2, dtype=torch.float16), "n": 3})
    path = tmp_path / "x.pt"
    for length in range(len(content)):
        with pytest.raises(CheckpointError) as refused:
            open_checkpoint(write(path, content[:length]))
        assert str(path) in refused.value.facts["file"]
        assert length == 0 or refused.value.facts["found"]


def test_any_flipped_bit_is_refused_or_stays_inside(tmp_path: Path) -> None:
    """Such files have no checksums: a flip is refused in one message, or gives tensors that lie inside the file."""
    content = saved({"w": torch.ones(3, 2), "b": torch.ones(2), "n": 3})
    path = tmp_path / "x.pt"
    rng, refused = random.Random(0), 0
    for _ in range(600):
        damaged = bytearray(content)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        try:
            bake(open_checkpoint(write(path, bytes(damaged))), BakeConfig(choice="raw"), tmp_path / "out.safetensors")
        except InputRefused:
            refused += 1
    assert refused > 200


MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
VERSION = pickle.dumps(1001, 2)
MACHINE = pickle.dumps({"little_endian": True}, 2)
CALL = b"cos\nsystem\n(X\x04\x00\x00\x00truetR0"


def storage(key: str = "1", count: int = 2) -> bytes:
    """Return the opcodes of a storage's persistent id."""
    text = len(key).to_bytes(4, "little") + key.encode()
    return b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX" + text + b"X\x03\x00\x00\x00cpuJ" + count.to_bytes(4, "little") + b"NtQ"


def tensor(of: bytes, shape: int = 2) -> bytes:
    """Return a pickle of a dict with one tensor."""
    size = b"J" + shape.to_bytes(4, "little") + b"\x85"
    return b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(" + of + b"K\x00" + size + b"K\x01\x85\x89}tRs."


def row(tree: bytes = tensor(storage()), keys: object = ("1",), counts: tuple[int, ...] = (2,), machine: bytes = MACHINE) -> bytes:
    """Return a file with one storage of two elements, or what a test makes of it."""
    listed = keys if isinstance(keys, bytes) else pickle.dumps(list(keys), 2)
    bytes_ = b"".join(count.to_bytes(8, "little", signed=count < 0) + bytes(8) for count in counts)
    return MAGIC + VERSION + machine + tree + listed + bytes_


LYING = {
    "more elements in the file than in the tree": (row(counts=(3,)), "E112"),
    "fewer elements in the file": (row(counts=(1,)), "E112"),
    "negative count": (row(counts=(-1,)), "E112"),
    "count of 2^62": (row(counts=(1 << 62,)), "E112"),
    "tree of 2^31 elements": (row(tensor(storage(count=0x7FFFFFFF)), counts=(0x7FFFFFFF,)), "E104"),
    "shape beyond the storage": (row(tensor(storage(), shape=3)), "E112"),
    "a storage that is not listed": (row(keys=()), "E112"),
    "a storage that nobody names": (row(keys=("1", "2"), counts=(2, 2)), "E112"),
    "a storage twice": (row(keys=("1", "1"), counts=(2, 2)), "E112"),
    "keys that are no text": (row(keys=(1,)), "E110"),
    "keys that are no list": (row(keys=pickle.dumps("1", 2)), "E110"),
    "bytes after the end": (row() + b"x", "E110"),
    "another file behind": (row() + row(), "E110"),
    "big endian": (row(machine=pickle.dumps({"little_endian": False}, 2)), "E108"),
    "no facts of the machine": (row(machine=pickle.dumps(None, 2)), "E110"),
    "another version": (MAGIC + pickle.dumps(1002, 2), "E110"),
    "a call beside the tree": (row(machine=b"\x80\x02" + CALL + MACHINE[2:]), "E110"),
    "a call in the list of keys": (row(keys=b"\x80\x02" + CALL + pickle.dumps(["1"], 2)[2:]), "E110"),
    "two sizes of one storage": (
        row(tensor(storage())[:-1] + b"X\x01\x00\x00\x00b" + tensor(storage(count=1), 1)[9:-1] + b"."),
        "E112",
    ),
    "a persistent id of something else": (row(b"\x80\x02X\x01\x00\x00\x00xQ."), "E110"),
    "a class of storage that is none": (row(tensor(storage().replace(b"FloatStorage", b"OtherStorage"))), "E113"),
    "a run of bytes beyond the file": (row(b"\x80\x04\x8e" + b"\xff" * 7 + b"\x3f."), "E110"),
    "text beyond the file": (row(b"\x80\x04\x8d" + b"\xff" * 7 + b"\x3f."), "E110"),
}


def test_the_control_is_accepted(tmp_path: Path) -> None:
    """The row that the lying ones are made from opens, here and in torch."""
    path = write(tmp_path / "x.pt", row())
    same_bytes(open_checkpoint(path).root, torch.load(path, weights_only=True))


@pytest.mark.parametrize("case", LYING)
def test_lying_file_is_refused(case: str, tmp_path: Path) -> None:
    """Each is refused with its code; the message names file, place and reason."""
    content, code = LYING[case]
    path = write(tmp_path / "x.pt", content)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(path)
    assert refused.value.code == code, refused.value
    assert refused.value.facts["file"] == str(path)
    assert refused.value.facts["at"].startswith("byte ")
    assert refused.value.facts["found"]


class Payload:
    """Runs a command where a pickle is executed."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        import os

        return os.system, (self.command,)


def test_payload_is_seen_and_does_not_run(tmp_path: Path) -> None:
    """A call in the tree is listed, nothing runs, and the weights of the file are not baked; torch itself runs it."""
    canary = tmp_path / "canary"
    path = write(tmp_path / "x.pt", saved({"model": {"w": torch.ones(2)}, "extra": Payload(f"touch {canary}")}))
    checkpoint = open_checkpoint(path)
    assert {at: str(call) for at, call in checkpoint.calls.items()} == {"extra": "posix.system"}
    with pytest.raises(InputRefused, match="calls code"):
        bake(checkpoint, BakeConfig(choice="raw"), tmp_path / "out.safetensors")
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()
