"""What ``torch.save`` wrote before torch 1.6: a row of pickles, and the bytes of the storages behind them.

    magic number · protocol version · facts of the machine · the tree · keys of the storages · per storage its count and bytes

The tree names its storages by key, with dtype and number of elements; where they stand is known only after the last pickle.
So the tree is read twice: first for the sizes, then with the places. Nothing in such a file is a checksum.

The same form stands inside plain pickles, once for every storage (``torch.storage._load_from_bytes``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from exporter.artifacts import Checkpoint, GlobalRef, Node, StorageRef, brief
from exporter.checkpoint.pickle_calls import locate_calls
from exporter.checkpoint.pickle_meanings import STORAGE_DTYPES, MalformedPickle, TypedStorage
from exporter.checkpoint.pickle_ops import Unpickler
from exporter.checkpoint.pickle_stream import PickleStream
from exporter.errors import CheckpointError
from exporter.locations import Location
from exporter.tensors.dtypes import DTYPES
from exporter.tensors.sources import ByteSource

__all__ = ["LEGACY_START", "class_with_source", "element_bytes", "read_legacy_stream", "read_torch_legacy", "refused"]

LEGACY_START = rb"\x80[\x02-\x05](?:\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\."
"""Pattern of the first pickle: the magic number, and its end."""

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_COUNT_BYTES = 8


@dataclass(frozen=True, slots=True)
class _Declared:
    """What the tree says of a storage."""

    dtype: str
    count: int

    @property
    def size_bytes(self) -> int:
        return self.count * element_bytes(self.dtype)


def read_torch_legacy(file: ByteSource, path: Location) -> Checkpoint:
    """Return the checkpoint in the open file.

    Raises:
        CheckpointError: E104, E108 or E110 to E113, saying at which byte.
    """
    stream = PickleStream(file, path)
    try:
        tree, unpickler = read_legacy_stream(stream)
        calls = locate_calls(tree, unpickler.calls)
    except MalformedPickle as err:
        raise refused(err, path, stream.position) from err
    return Checkpoint(path, "torch legacy", file.size_bytes, tree, tuple(unpickler.globals), calls)


def refused(err: MalformedPickle, path: Location, position: int) -> CheckpointError:
    """Return the error that is shown for a pickle at ``position`` of a file."""
    return CheckpointError(err.code, f"the pickle in the checkpoint {err.problem}", facts={"file": path, "at": f"byte {position}", "found": err})


def read_legacy_stream(stream: PickleStream) -> tuple[Node, Unpickler]:
    """Return the tree of the torch file that fills the rest of ``stream``, and what read it.

    Raises:
        MalformedPickle: anything that torch does not write.
    """
    if _facts(stream) != _MAGIC or _facts(stream) != _PROTOCOL:
        raise MalformedPickle("another magic number or version than torch's")
    machine = _facts(stream)
    if not isinstance(machine, Mapping):
        raise MalformedPickle("no facts of the machine that wrote it")
    if machine.get("little_endian") is not True:
        raise MalformedPickle("a file of a big-endian machine", code="E108")
    begin = stream.position
    sizes = _StorageSizes(stream.path)
    Unpickler(stream, persistent=sizes).load()
    places = _places(stream, sizes.declared)
    again = PickleStream(stream.file, stream.path, begin, stream.end, budget=stream.budget)
    unpickler = Unpickler(again, persistent=_StoragePlaces(stream.path, sizes.declared, places))
    return unpickler.load(), unpickler


def _facts(stream: PickleStream) -> Node:
    """Return the plain value of a pickle beside the tree; one that calls anything was not written by torch."""
    unpickler = Unpickler(stream)
    value = unpickler.load()
    if unpickler.calls or unpickler.globals:
        raise MalformedPickle(f"the global {unpickler.globals[0]} in a pickle of plain values")
    return value


def element_bytes(dtype: str) -> int:
    """Return the size of an element; that of an untyped storage is a byte."""
    return 1 if dtype == "untyped" else DTYPES[dtype].size_bytes


def _places(stream: PickleStream, declared: Mapping[str, _Declared]) -> dict[str, int]:
    """Return key -> position of the first byte; every count must be the one that the tree says."""
    listed = _facts(stream)
    keys = [key for key in listed if isinstance(key, str)] if isinstance(listed, list) else None
    if keys is None or not isinstance(listed, list) or len(keys) != len(listed):
        raise MalformedPickle("a list of storages that is none")
    if len(set(keys)) != len(keys) or set(keys) != set(declared):
        raise MalformedPickle(f"{len(keys)} storages in the list, {len(declared)} in the tree, or others", code="E112")
    places: dict[str, int] = {}
    for key in keys:
        prefix = stream.read(_COUNT_BYTES)
        size = declared[key].size_bytes
        if len(prefix) < _COUNT_BYTES or size > stream.end - stream.position:
            raise MalformedPickle(f"storage {key[:80]!r} of {size} bytes where {stream.end - stream.position} are left", code="E104")
        count = int.from_bytes(prefix, "little")
        if count != declared[key].count:
            raise MalformedPickle(f"storage {key[:80]!r} with {count} elements, and {declared[key].count} in the tree", code="E112")
        places[key] = stream.position
        stream.skip(size)
    stream.check_end()
    return places


def _parsed(persistent_id: Node) -> tuple[str, _Declared, tuple[int, int] | None]:
    """Return key, dtype and count, and the part of it that is meant, of ``("storage", class, key, device, count, view)``."""
    if not (isinstance(persistent_id, tuple) and len(persistent_id) in {5, 6} and persistent_id[0] == "storage"):
        raise MalformedPickle("a persistent id that names no storage")
    _, kind, key, _, count, *rest = persistent_id
    dtype = STORAGE_DTYPES.get(str(kind)) if isinstance(kind, GlobalRef) else None
    if dtype is None:
        raise MalformedPickle(f"a persistent id with the storage class {brief(kind)}", code="E113" if isinstance(kind, GlobalRef) else "E110")
    if not isinstance(key, str) or type(count) is not int or not 0 <= count < 1 << 60:
        raise MalformedPickle("a storage without key or size")
    view = rest[0] if rest else None
    if view is None:
        return key, _Declared(dtype, count), None
    _, begin, part = view if isinstance(view, tuple) and len(view) == 3 else (None, None, None)
    if type(begin) is not int or type(part) is not int or begin < 0 or part < 0 or begin + part > count:
        raise MalformedPickle(f"a part of storage {key[:80]!r} that reaches outside of it", code="E112")
    return key, _Declared(dtype, count), (begin, part)


class _StorageSizes:
    """For the first reading: what the tree says of each storage."""

    def __init__(self, path: Location) -> None:
        self._path = path
        self.declared: dict[str, _Declared] = {}

    def __call__(self, persistent_id: Node) -> Node:
        if isinstance(persistent_id, tuple) and len(persistent_id) == 4 and persistent_id[0] == "module":
            return class_with_source(persistent_id)
        key, declared, view = _parsed(persistent_id)
        if self.declared.setdefault(key, declared) != declared:
            raise MalformedPickle(f"storage {key[:80]!r} with two sizes or dtypes", code="E112")
        return _typed(self._path, key, declared, 0, view)


class _StoragePlaces:
    """For the second reading: the bytes behind each storage."""

    def __init__(self, path: Location, declared: Mapping[str, _Declared], places: Mapping[str, int]) -> None:
        self._path = path
        self._declared = declared
        self._places = places
        self._known: dict[tuple[str, tuple[int, int] | None], TypedStorage] = {}

    def __call__(self, persistent_id: Node) -> Node:
        if isinstance(persistent_id, tuple) and len(persistent_id) == 4 and persistent_id[0] == "module":
            return class_with_source(persistent_id)
        key, declared, view = _parsed(persistent_id)
        known = self._known.get((key, view))
        if known is None:
            known = self._known[key, view] = _typed(self._path, key, declared, self._places[key], view)
        return known


def _typed(path: Location, key: str, declared: _Declared, offset: int, view: tuple[int, int] | None) -> TypedStorage:
    item = element_bytes(declared.dtype)
    begin, count = view if view is not None else (0, declared.count)
    fields = (key, path, offset + begin * item, count * item)
    return TypedStorage(*fields, plain=StorageRef(*fields), dtype=declared.dtype, num_declared=count)


def class_with_source(persistent_id: tuple[Node, ...]) -> Node:
    """``("module", class, file, source)``: the class; the source beside it is text that nobody reads."""
    if not isinstance(persistent_id[1], GlobalRef):
        raise MalformedPickle("a class that is none")
    return persistent_id[1]
