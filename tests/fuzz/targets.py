"""What is fuzzed: for every family of containers, opening a file and all that follows, and what must hold whatever the bytes are.

A new container is a row of ``TARGETS`` and a writer of its seeds in ``seeds.py``.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from exporter.artifacts import Checkpoint
from exporter.checkpoint import open_checkpoint
from exporter.cli import inspect
from exporter.config import BakeConfig
from exporter.errors import ExporterError
from exporter.tensors import read_header
from exporter.tensors.reading import open_regular
from exporter.weights import bake, load_weights, read_layout
from tests.fuzz import parcels

__all__ = ["CANARY", "MAX_S", "OWN_FOLDERS", "TARGETS", "Broken", "Target", "check", "watched"]

CANARY = "canary"
"""A file that seeds with a payload would make in the working folder."""
MAX_S = 5.0

CONFIGS = (
    BakeConfig(drift="always", allow_cold=True),
    BakeConfig(choice="raw"),
    BakeConfig(choice="raw", dtype="float16", allow_nonfinite=True),
    BakeConfig(drift="always", allow_cold=True, allow_nonfinite=True, dtype="bfloat16"),
    BakeConfig(choice="raw", strip_prefix="module.", digest="contents"),
)


class Broken(AssertionError):
    """Something that must hold for every input does not."""


@dataclass(frozen=True)
class Target:
    """A family of containers.

    Attributes:
        seeds: beginnings of the names of the seeds that it starts from.
        run: what is done with the input; its second argument is an empty folder for outputs.
    """

    name: str
    seeds: tuple[str, ...]
    run: Callable[[Path, Path], None]


def look(path: Path, _: Path) -> None:
    """Open, read the layout, and render what ``exporter inspect`` shows."""
    _shown(open_checkpoint(path))


def chain(path: Path, output: Path) -> None:
    """Look, then bake with settings that hang on the input, and read what was baked."""
    checkpoint = open_checkpoint(path)
    _shown(checkpoint)
    config = CONFIGS[zlib.crc32(str(checkpoint.size_bytes).encode()) % len(CONFIGS)]
    weights = bake(checkpoint, config, output / "baked.safetensors")
    with open_regular(weights.path) as file:
        if sorted(entry.name for entry in read_header(file, weights.path).entries) != sorted(spec.name for spec in weights.tensors):
            raise Broken("the output holds other tensors than it says")
    if load_weights(weights.path) is None:
        raise Broken("what was just baked is not up to date")


def artefact(path: Path, _: Path) -> None:
    """Ask whether baked weights, their record beside them, are up to date; and read the same file as a checkpoint."""
    baked = path / "baked.safetensors"
    record = path / "baked.safetensors.json"
    if record.is_file() and zlib.crc32(record.read_bytes()) % 2:
        _sign(record)
    load_weights(baked)
    look(baked, path)


def _sign(record: Path) -> None:
    """Give the record a right signature, as an earlier release of ours would have: its content is trusted no further than that."""
    from exporter.records import _signature

    try:
        body = json.loads(record.read_bytes())
        body.pop("hmac", None)
        record.write_text(json.dumps({**body, "hmac": _signature(body)}), encoding="utf-8")
    except (ValueError, AttributeError, TypeError, RecursionError):
        return


def _shown(checkpoint: Checkpoint) -> None:
    reading = read_layout(checkpoint)
    inspect._header(checkpoint, reading, None)
    inspect._weights(reading)
    inspect._other(reading)
    inspect._code(checkpoint)
    inspect._tree(checkpoint, None)
    json.dumps(inspect._as_json(checkpoint, reading), allow_nan=False)


TARGETS = (
    Target("torch zip", ("zip-",), chain),
    Target("torch legacy", ("legacy-",), chain),
    Target("torch tar", ("tar-",), look),
    Target("pickle", ("pickle-",), chain),
    Target("safetensors", ("safetensors-",), chain),
    Target("shards", ("shards-",), chain),
    Target("distributed", ("distributed-",), chain),
    Target("DeepSpeed", ("deepspeed-",), look),
    Target("programs", ("program-",), chain),
    Target("HDF5", ("hdf5-",), look),
    Target("TensorFlow", ("tensorflow-",), chain),
    Target("Flax", ("flax-",), chain),
    Target("artefacts", ("artefact-",), artefact),
    Target("whole chain", ("zip-", "legacy-", "tar-", "pickle-", "safetensors-", "program-"), chain),
)


def check(target: Target, data: bytes, folder: Path, *, watch: bool = True) -> str:
    """Give ``data`` to the target in ``folder``, which is empty before and after; return the code of the refusal, empty where there is none.

    Without ``watch`` libraries may be imported for the first time, which starts programs and sets variables.

    Raises:
        Broken: any promise is broken; every other exception but ExporterError is let through, and breaks one too.
    """
    output = folder / "out"
    output.mkdir()
    code = ""
    began = time.process_time() + _children_s()
    try:
        path = parcels.write(data, folder)
        with watched(folder) if watch else nullcontext():
            target.run(path, output)
    except ExporterError as err:
        code = err.code
        _check_refusal(err)
        if any(output.iterdir()):
            raise Broken(f"left behind after {err.code}: {sorted(p.name for p in output.iterdir())}") from err
    finally:
        took = time.process_time() + _children_s() - began
        shutil.rmtree(folder)
        folder.mkdir()
    if Path(CANARY).exists():
        raise Broken("code from the file was run")
    if took > MAX_S:
        raise Broken(f"{took:.1f} s of processor time")
    return code


def _check_refusal(err: ExporterError) -> None:
    if err.exit_status != 4:
        raise Broken(f"exit status {err.exit_status} with {err.code}") from err
    if not (err.facts.get("file") or err.facts.get("at")):
        raise Broken(f"{err.code} without file or place") from err
    if any(not (c.isprintable() or c == "\n") for c in str(err)):
        raise Broken(f"{err.code} shows a control character: {str(err)!r}") from err
    if len(str(err)) > 20_000:
        raise Broken(f"{err.code} with a message of {len(str(err))} characters") from err


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


# ---- what the program may do while it looks at a file

_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "pickle.find_class",
    "socket.",
    "ctypes.",
    "pty.",
    "os.putenv",
    "shutil.",
)
_PATHS = {"os.remove": 0, "os.rename": 1, "os.mkdir": 0, "os.symlink": 1, "os.link": 1, "os.truncate": 0, "os.rmdir": 0, "os.chmod": 0}
OWN_FOLDERS: list[str] = []
"""Where the fuzzer itself writes."""
_watching: list[Path] = []
_seen: list[str] = []


def _hook(event: str, args: tuple[object, ...]) -> None:
    if not _watching:
        return
    if event.startswith(_FORBIDDEN):
        _seen.append(f"{event} {args!r}"[:300])
    elif event == "open" and isinstance(args[2], int) and args[2] & 3:
        _note(event, args[0])
    elif event in _PATHS:
        _note(event, args[_PATHS[event]])


def _note(event: str, path: object) -> None:
    if isinstance(path, (str, Path)) and not str(path).startswith((str(_watching[-1]), *OWN_FOLDERS)):
        _seen.append(f"{event} {path!r}"[:300])


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Raise where the code within starts a program, looks up a pickled class, or changes a file outside of ``folder``.

    Raises:
        Broken: it did.
    """
    if not _installed:
        sys.addaudithook(_hook)
        _installed.append(True)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # a module imported late would leave its bytecode beside it
    _watching.append(folder)
    _seen.clear()
    try:
        yield
    finally:
        _watching.pop()
        sys.dont_write_bytecode = written
        if _seen:
            raise Broken(f"while looking at a file: {_seen[0]}")


_installed: list[bool] = []
