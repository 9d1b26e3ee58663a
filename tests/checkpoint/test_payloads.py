"""No form of payload in a pickle is ever run; each is seen and refused."""

from __future__ import annotations

import contextlib
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import CheckpointError, LayoutError
from exporter.weights import bake, read_layout

Payload = Callable[[str], bytes]


def text(value: str) -> bytes:
    """Push text with BINUNICODE."""
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def named(module: str, name: str) -> bytes:
    """Push a global with GLOBAL."""
    return f"c{module}\n{name}\n".encode()


def call(callee: bytes, *args: bytes) -> bytes:
    """Push ``callee(*args)`` with REDUCE."""
    return callee + b"(" + b"".join(args) + b"tR"


SYSTEM = named("posix", "system")
PROTO2, PROTO4 = b"\x80\x02", b"\x80\x04"

FORMS: dict[str, Payload] = {
    "reduce": lambda cmd: PROTO2 + call(SYSTEM, text(cmd)) + b".",
    "reduce, protocol 0": lambda cmd: b"cposix\nsystem\n(V" + cmd.encode() + b"\ntR.",
    "reduce, python 2 name": lambda cmd: PROTO2 + call(named("__builtin__", "eval"), text(f"__import__('os').system({cmd!r})")) + b".",
    "stack global": lambda cmd: PROTO4 + text("posix") + text("system") + b"\x93" + text(cmd) + b"\x85R.",
    "stack global by memo": lambda cmd: PROTO4 + text("system") + b"\x940" + text("posix") + b"\x940h\x01h\x00\x93" + text(cmd) + b"\x85R.",
    "stack global with dots": lambda cmd: PROTO4 + text("shutil") + text("os.system") + b"\x93" + text(cmd) + b"\x85R.",
    "inst": lambda cmd: b"(V" + cmd.encode() + b"\niposix\nsystem\n.",
    "obj": lambda cmd: PROTO2 + b"(" + SYSTEM + text(cmd) + b"o.",
    "newobj of map and bytes": lambda cmd: (
        PROTO2 + named("builtins", "bytes") + b"(" + named("builtins", "map") + b"(" + SYSTEM + b"(" + text(cmd) + b"lt\x81t\x81."
    ),
    "newobj function": lambda cmd: (
        PROTO2
        + call(
            named("copyreg", "__newobj__"),
            named("builtins", "bytes"),
            call(named("copyreg", "__newobj__"), named("builtins", "map"), SYSTEM, b"(" + text(cmd) + b"l"),
        )
        + b"."
    ),
    "newobj_ex": lambda cmd: (
        PROTO4 + named("builtins", "bytes") + b"(" + named("builtins", "map") + b"(" + SYSTEM + b"(" + text(cmd) + b"lt}\x92t}\x92."
    ),
    "build twice": lambda cmd: PROTO2 + named("argparse", "Namespace") + b")\x81}" + text("__setstate__") + SYSTEM + b"sb" + text(cmd) + b"b.",
    "getattr chain": lambda cmd: (
        PROTO2 + call(call(named("builtins", "getattr"), call(named("builtins", "__import__"), text("os")), text("system")), text(cmd)) + b"."
    ),
    "partial": lambda cmd: PROTO2 + call(call(named("functools", "partial"), SYSTEM, text(cmd))) + b".",
    "methodcaller": lambda cmd: (
        PROTO2 + call(call(named("operator", "methodcaller"), text("system"), text(cmd)), call(named("builtins", "__import__"), text("os"))) + b"."
    ),
    "inside a persistent id": lambda cmd: PROTO2 + b"(" + text("storage") + call(SYSTEM, text(cmd)) + text("0") + text("cpu") + b"K\x01tQ.",
    "as a key": lambda cmd: PROTO2 + b"}" + call(SYSTEM, text(cmd)) + b"K\x01s.",
    "made and dropped": lambda cmd: PROTO2 + call(SYSTEM, text(cmd)) + b"0}.",
    "behind a mark and dropped": lambda cmd: PROTO2 + b"(" + call(SYSTEM, text(cmd)) + b"1}.",
    "in an ordered dict": lambda cmd: PROTO2 + call(named("collections", "OrderedDict"), b"((" + text("w") + call(SYSTEM, text(cmd)) + b"ll") + b".",
    "in a tensor's type": lambda cmd: (
        PROTO2 + call(named("torch._tensor", "_rebuild_from_type_v2"), SYSTEM, named("torch", "Tensor"), b"(" + text(cmd) + b"t", b"}") + b"."
    ),
    "in a parameter": lambda cmd: PROTO2 + call(named("torch._utils", "_rebuild_parameter"), call(SYSTEM, text(cmd)), b"\x88", b"}") + b".",
    "nested pickle": lambda cmd: b"\x80\x04" + call(named("pickle", "loads"), b"C" + bytes([len(inner := FORMS["reduce"](cmd))]) + inner) + b".",
    "nested torch file": lambda cmd: b"\x80\x04" + call(named("torch.storage", "_load_from_bytes"), b"C\x02xx") + call(SYSTEM, text(cmd)) + b"0.",
    "code object": lambda cmd: PROTO2 + call(named("builtins", "exec"), text(f"import os; os.system({cmd!r})")) + b".",
}
INERT_IN_PICKLE = {"inside a persistent id", "nested torch file", "in a tensor's type", "in a parameter"}
"""Forms that ``pickle.loads`` alone cannot run to the end: they need torch."""


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that exists only if a payload ran."""
    return tmp_path / "canary"


@pytest.mark.parametrize("form", FORMS)
def test_payload_never_runs_and_is_seen(form: str, canary: Path, write_zip, tmp_path: Path) -> None:
    """Opening, reading and baking leave the canary uncreated; the file is refused, naming the global and its place."""
    pickled = FORMS[form](f"touch {canary}")
    path = write_zip(pickled, storages={"0": bytes(4)})
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError as err:
        assert err.code in {"E110", "E113"}  # noqa: PT017 - either way of refusing is right
    else:
        assert checkpoint.calls, "the call was not seen"
        read_layout(checkpoint)
        output = tmp_path / "out.safetensors"
        with pytest.raises(LayoutError, match="calls code") as refused:
            bake(checkpoint, BakeConfig(choice="raw"), output)
        assert refused.value.code == "E203"
        assert refused.value.exit_status == 4
        assert not output.exists()
        place, callee = next(iter(checkpoint.calls.items()))
        assert place in refused.value.facts["found"]
        assert str(callee) in refused.value.facts["found"]
    assert not canary.exists()


@pytest.mark.parametrize("container", ["pickle", "torch legacy"])
@pytest.mark.parametrize("form", [form for form in FORMS if FORMS[form]("").startswith(b"\x80")])
def test_payload_never_runs_in_other_containers(form: str, container: str, canary: Path, tmp_path: Path) -> None:
    """The same bytes as a plain pickle, or as the tree of a file of torch before 1.6, do not run either."""
    pickled = FORMS[form](f"touch {canary}")
    if container == "torch legacy":
        before = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        pickled = before + pickled + pickle.dumps([], 2)
    path = tmp_path / "made.pt"
    path.write_bytes(pickled)
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError as err:
        assert err.code in {"E110", "E112", "E113"}  # noqa: PT017 - either way of refusing is right
    else:
        assert checkpoint.container == container
        assert checkpoint.calls, "the call was not seen"
        with pytest.raises(LayoutError, match="calls code"):
            bake(checkpoint, BakeConfig(choice="raw"), tmp_path / "out.safetensors")
    assert not canary.exists()


@pytest.mark.parametrize("form", sorted(set(FORMS) - INERT_IN_PICKLE))
def test_payload_is_real(form: str, canary: Path) -> None:
    """The same bytes given to Python's own pickle do create the canary: the test above can fail."""
    with contextlib.suppress(TypeError, ValueError, AttributeError, pickle.UnpicklingError):  # raised after the payload ran
        pickle.loads(FORMS[form](f"touch {canary}"))
    assert canary.exists()


@pytest.mark.parametrize(
    ("pickled", "callee"),
    [
        pytest.param(PROTO2 + named("sys", "modules") + text("os") + text("x") + b"s.", "sys.modules.__setitem__", id="item set on a global"),
        pytest.param(PROTO2 + named("sys", "path") + text("/tmp") + b"a.", "sys.path.extend", id="value appended to a global"),
        pytest.param(
            PROTO2 + named("torch", "Tensor") + b"}" + text("add") + text("x") + b"sb.", "torch.Tensor.__setstate__", id="state set on a global"
        ),
        pytest.param(PROTO2 + b"\x82\x07)R.", "copyreg extension.7", id="extension code"),
    ],
)
def test_use_of_a_global_is_a_call(pickled: bytes, callee: str, write_zip) -> None:
    """Changing a module or class is listed like a call; extension codes are not looked up."""
    checkpoint = open_checkpoint(write_zip(pickled))
    assert [str(found) for found in checkpoint.calls.values()] == [callee]


def test_place_of_a_call_is_its_key_path(write_zip) -> None:
    """A call inside the tree is named by its key path, one that left nothing by its byte."""
    inside = PROTO2 + b"}" + text("model") + b"}" + text("w") + call(SYSTEM, text("true")) + b"ss."
    assert list(open_checkpoint(write_zip(inside)).calls) == ["model/w"]
    dropped = FORMS["made and dropped"]("true")
    assert list(open_checkpoint(write_zip(dropped)).calls) == [f"byte {dropped.index(b'R')} of the pickle"]


def test_instances_of_unknown_classes_are_inert_and_accepted(write_zip) -> None:
    """A pickled module of a package that is not installed is no call."""
    pickled = PROTO2 + named("some.package", "Model") + b")\x81}" + text("training") + b"\x89sb."
    checkpoint = open_checkpoint(write_zip(pickled))
    assert not checkpoint.calls
    assert str(checkpoint.root.callee) == "some.package.Model"
    assert checkpoint.root.state == {"training": False}
