"""Plain pickles that hold tensors: torch's, NumPy's, and those of EDM and StyleGAN; read where they stand, or refused by name."""

from __future__ import annotations

import io
import pickle
import random
import sys
import types
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from exporter.artifacts import ObjectRef, StorageRef, TensorRef
from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import CheckpointError, InputRefused
from exporter.tensors import read_tensor
from exporter.weights import bake, read_layout
from tests.checkpoint.tensor_forms import every_form, same_bytes, write

CODES = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1", "c8", "c16")
ARRAYS = {
    **{f"dtype {np.dtype(code).name}": np.arange(6).astype(code) for code in CODES},
    "dtype bfloat16": np.arange(6).astype(ml_dtypes.bfloat16),
    "dtype float8_e4m3fn": np.arange(6).astype(ml_dtypes.float8_e4m3fn),
    "matrix": np.arange(6.0).reshape(2, 3),
    "in Fortran's order": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "every other": np.arange(12.0)[::2],
    "number": np.array(3.0),
    "empty": np.ones((0, 3), "f4"),
    "long": np.arange(3000.0),
}


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_every_torch_dtype_and_view(protocol: int, tmp_path: Path) -> None:
    """pickle.dump of torch tensors: each has the dtype, shape and bytes that it had."""
    tensors = every_form()
    checkpoint = open_checkpoint(write(tmp_path / "x.pkl", pickle.dumps(tensors, protocol)))
    assert checkpoint.container == "pickle"
    assert not checkpoint.calls
    same_bytes(checkpoint.root, tensors)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("form", ARRAYS)
def test_every_array(form: str, protocol: int, tmp_path: Path) -> None:
    """pickle.dump of NumPy arrays: each is a reference to its bytes in the file, in whatever order they stand."""
    array = ARRAYS[form]
    value = {"first": array, "again": [array]}
    checkpoint = open_checkpoint(write(tmp_path / "x.pkl", pickle.dumps(value, protocol)))
    ref = checkpoint.root["first"]
    assert isinstance(ref, TensorRef)
    assert checkpoint.root["again"][0] == ref
    read = read_tensor(ref)
    assert read.dtype == array.dtype
    assert read.shape == array.shape
    assert read.tobytes() == array.tobytes()


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_that_cannot_be_weights_stay_records(protocol: int, tmp_path: Path) -> None:
    """The state of a random generator, an array of objects or of text do not refuse a file."""
    value = {"names": np.array(["a", "b"]), "objects": np.array([None, 1], object), "table": np.zeros(2, [("a", "f4")])}
    content = pickle.dumps(value, protocol)
    if protocol < 2:  # such pickles have no header to be recognised by
        with pytest.raises(CheckpointError, match="container"):
            open_checkpoint(write(tmp_path / "x.pkl", content))
        return
    checkpoint = open_checkpoint(write(tmp_path / "x.pkl", content))
    assert not checkpoint.calls
    assert all(isinstance(node, ObjectRef) for node in checkpoint.root.values())


def test_integers_as_text_stay_records(tmp_path: Path) -> None:
    """In protocol 2 the numbers of a random generator have no bytes in the file; they are no weights either."""
    checkpoint = open_checkpoint(write(tmp_path / "x.pkl", pickle.dumps({"state": np.arange(4)}, 2)))
    assert isinstance(checkpoint.root["state"], ObjectRef)


UNSUPPORTED = {
    "torch tensors as text": (pickle.dumps({"w": torch.ones(2)}, 2), "torch tensor"),
    "arrays as text": (pickle.dumps({"w": np.ones(2)}, 2), "array of float64"),
    "big-endian arrays": (pickle.dumps({"w": np.ones(2, ">f4")}, 4), "big-endian"),
    "big-endian arrays, protocol 5": (pickle.dumps({"w": np.ones(2, ">f4")}, 5), "big-endian"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_tensors_whose_bytes_stand_nowhere_are_named(case: str, tmp_path: Path) -> None:
    """What cannot be pointed at is refused, saying what it is and at which byte."""
    content, words = UNSUPPORTED[case]
    with pytest.raises(CheckpointError, match="pointed at") as refused:
        open_checkpoint(write(tmp_path / "x.pkl", content))
    assert refused.value.code == "E131"
    assert words in refused.value.facts["found"]
    assert refused.value.facts["at"].startswith("byte ")


def test_long_runs_of_bytes_stay_in_the_file(tmp_path: Path) -> None:
    """Bytes that are no tensor become a reference, so that a file of any size opens in little memory."""
    value = {"blob": bytes(5000), "short": b"abc", "array": bytearray(5000)}
    root = open_checkpoint(write(tmp_path / "x.pkl", pickle.dumps(value, 5))).root
    assert root["short"] == b"abc"
    assert [type(root[key]) for key in ("blob", "array")] == [StorageRef, StorageRef]


def test_opening_reads_no_tensor_bytes_into_the_tree(tmp_path: Path) -> None:
    """A pickle with 64 MB of tensors opens in a few MB."""
    import tracemalloc

    path = write(tmp_path / "x.pkl", pickle.dumps({"w": torch.zeros(1 << 23), "a": np.zeros(1 << 22)}, 4))
    tracemalloc.start()
    open_checkpoint(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000


PERSISTENCE = '''
import sys
def _reconstruct_persistent_obj(meta):
    """Runs the embedded source, as the loaders of EDM and StyleGAN do."""
    space = {}
    exec(meta["module_src"], space)
    obj = space[meta["class_name"]].__new__(space[meta["class_name"]])
    obj.__dict__.update(meta["state"])
    return obj
'''


@pytest.fixture
def persistence(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module of the name and behaviour of theirs."""
    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")
    exec(PERSISTENCE, module.__dict__)
    package.persistence = module
    monkeypatch.setitem(sys.modules, "torch_utils", package)
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)
    return module


def snapshot(persistence: types.ModuleType, source: str, **state: object) -> bytes:
    """Return a pickle as EDM writes it: the average of a network whose class stands in the file as source."""

    class Persistent:
        def __init__(self, state: dict[str, object]) -> None:
            self.state = state

        def __reduce__(self) -> tuple[object, ...]:
            meta = {"type": "class", "version": 6, "module_src": source, "class_name": "Net", "state": self.state}
            return persistence._reconstruct_persistent_obj, (meta,), None

    inner = torch.nn.Linear(3, 2)
    average = {"training": False, "_parameters": {}, "_buffers": {"sigma": torch.ones(4)}, "_modules": {"model": inner}, **state}
    return pickle.dumps({"ema": Persistent(average), "loss_fn": None, "dataset_kwargs": {"path": "x"}})


def test_a_network_with_embedded_source_is_read_and_its_source_stays_text(
    persistence: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The average of such a snapshot bakes without its source being run; loading it as its trainer does runs it."""
    canary = tmp_path / "canary"
    content = snapshot(persistence, f"open({str(canary)!r}, 'w').close()\nclass Net: pass")
    path = write(tmp_path / "x.pkl", content)
    checkpoint = open_checkpoint(path)
    assert not checkpoint.calls
    assert [candidate.name for candidate in read_layout(checkpoint).candidates] == ["ema"]
    weights = bake(checkpoint, BakeConfig(), tmp_path / "out.safetensors")
    assert not canary.exists()
    loaded = pickle.loads(content)["ema"]
    assert canary.exists()
    wanted = {"sigma": loaded._buffers["sigma"]} | {f"model.{name}": value for name, value in loaded._modules["model"].state_dict().items()}
    root = open_checkpoint(weights.path).root
    same_bytes({name: root[name] for name in wanted}, wanted)


@pytest.mark.parametrize("meta", [None, {}, {"type": "class", "class_name": 3}, {"type": "class", "class_name": "a.b"}])
def test_other_uses_of_that_loader_are_calls(meta: object, persistence: types.ModuleType, tmp_path: Path) -> None:
    """Only what the trainers write is taken for it."""

    class Odd:
        def __reduce__(self) -> tuple[object, ...]:
            return persistence._reconstruct_persistent_obj, (meta,)

    checkpoint = open_checkpoint(write(tmp_path / "x.pkl", pickle.dumps({"ema": Odd()})))
    assert [str(call) for call in checkpoint.calls.values()] == ["torch_utils.persistence._reconstruct_persistent_obj"]


def embedded(content: bytes) -> bytes:
    """Return a pickle that hands ``content`` to torch as a file."""
    return b"\x80\x04}X\x01\x00\x00\x00wctorch.storage\n_load_from_bytes\nB" + len(content).to_bytes(4, "little") + content + b"\x85Rs."


def inner(value: object) -> bytes:
    """Return a file of the old form."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


STORAGE = inner(torch.ones(2).untyped_storage())
ROW = np.ones(3, "f4")
LYING = {
    "bytes after the end": (pickle.dumps({"a": 1}) + b"x", "E110"),
    "a second pickle": (pickle.dumps({"a": 1}) * 2, "E110"),
    "a file within that is no torch file": (embedded(b"\x80\x02}."), "E110"),
    "a file within that is cut short": (embedded(STORAGE[:-1]), "E104"),
    "a file within with more behind": (embedded(STORAGE + b"x"), "E110"),
    "a file within that holds no storage": (embedded(inner({"w": torch.ones(2)})), "E110"),
    "a run longer than the file": (embedded(STORAGE).replace(len(STORAGE).to_bytes(4, "little"), b"\xff\xff\xff\x7f", 1), "E110"),
    "a larger shape than bytes": (pickle.dumps({"w": ROW}, 4).replace(b"K\x03\x85", b"K\x04\x85"), "E112"),
    "a smaller shape than bytes": (pickle.dumps({"w": ROW}, 4).replace(b"K\x03\x85", b"K\x02\x85"), "E112"),
    "a shape that is no number": (pickle.dumps({"w": ROW}, 4).replace(b"K\x03\x85", b"N\x85"), "E112"),
    "a huge shape": (pickle.dumps({"w": ROW}, 4).replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85"), "E112"),
}


@pytest.mark.parametrize("case", LYING)
def test_lying_pickle_is_refused(case: str, tmp_path: Path) -> None:
    """Each is refused with its code; the message names file, place and reason."""
    content, code = LYING[case]
    path = write(tmp_path / "x.pkl", content)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(path)
    assert refused.value.code == code, refused.value
    assert refused.value.facts["file"] == str(path)
    assert refused.value.facts["at"].startswith("byte ")


def test_a_call_in_a_file_within_is_listed(tmp_path: Path) -> None:
    """A payload in the torch file that stands for a storage is seen like any other, even where it leaves nothing in the tree."""
    at = STORAGE.index(b"\x80\x02(X\x07")
    hidden = STORAGE[: at + 2] + b"cposix\nsystem\n(X\x04\x00\x00\x00truetR0" + STORAGE[at + 2 :]
    checkpoint = open_checkpoint(write(tmp_path / "x.pkl", embedded(hidden)))
    assert [str(call) for call in checkpoint.calls.values()] == ["posix.system"]
    with pytest.raises(InputRefused):
        bake(checkpoint, BakeConfig(choice="raw"), tmp_path / "out.safetensors")


def test_truncated_at_any_byte_is_refused(tmp_path: Path) -> None:
    """Whatever is missing at the end, the file is refused, naming it and the reason."""
    content = pickle.dumps({"w": torch.ones(3, 2), "a": np.ones(4), "n": 3}, 4)
    path = tmp_path / "x.pkl"
    for length in range(len(content)):
        with pytest.raises(CheckpointError) as refused:
            open_checkpoint(write(path, content[:length]))
        assert refused.value.facts["file"] == str(path)
        assert refused.value.facts["found"]


@pytest.mark.parametrize("protocol", [4, 5])
def test_any_flipped_bit_is_refused_or_stays_inside(protocol: int, tmp_path: Path) -> None:
    """Such files have no checksums: a flip is refused in one message, or gives tensors that lie inside the file."""
    content = pickle.dumps({"w": torch.ones(3, 2), "a": np.ones(4), "n": 3}, protocol)
    path = tmp_path / "x.pkl"
    rng, refused = random.Random(0), 0
    for _ in range(400):
        damaged = bytearray(content)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        try:
            bake(open_checkpoint(write(path, bytes(damaged))), BakeConfig(choice="raw"), tmp_path / "out.safetensors")
        except InputRefused:
            refused += 1
    assert refused > 150


def test_one_file_within_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle that hands the same bytes over many times does not make the reader read them as often."""
    from exporter.checkpoint import pickle_arrays

    counted = []
    real = pickle_arrays.read_legacy_stream
    monkeypatch.setattr(pickle_arrays, "read_legacy_stream", lambda stream: counted.append(1) or real(stream))
    run = b"B" + len(STORAGE).to_bytes(4, "little") + STORAGE
    content = b"\x80\x04]\x94(ctorch.storage\n_load_from_bytes\n\x94" + run + b"\x94\x85R" + b"h\x01h\x02\x85R" * 500 + b"e."
    assert len(open_checkpoint(write(tmp_path / "x.pkl", content)).root) == 501
    assert len(counted) == 1
