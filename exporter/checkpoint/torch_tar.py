"""What ``torch.save`` wrote before torch 0.1.10: a tar archive of four files.

    sys_info: facts of the machine · storages: key, class, count and bytes of each, then parts of them
    tensors: key, storage, shape, strides and offset of each · pickle: the tree, which names tensors and storages by key

Each of them is a row of pickles with numbers in between, and is read without unpacking it to anywhere.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from exporter.artifacts import Checkpoint, GlobalRef, Node, StorageRef, TensorRef, brief
from exporter.checkpoint.pickle_budget import Budget
from exporter.checkpoint.pickle_calls import locate_calls
from exporter.checkpoint.pickle_meanings import STORAGE_DTYPES, MalformedPickle, TypedStorage, tensor_view
from exporter.checkpoint.pickle_ops import Unpickler
from exporter.checkpoint.pickle_stream import PickleStream
from exporter.checkpoint.tar_directory import TAR_MAGIC, read_tar
from exporter.checkpoint.torch_legacy import class_with_source, element_bytes, refused
from exporter.errors import CheckpointError
from exporter.locations import Location
from exporter.tensors.sources import ByteSource
from exporter.tensors.views import MAX_DIMENSIONS

__all__ = ["is_torch_tar", "read_torch_tar"]

MEMBERS = frozenset({"sys_info", "pickle", "storages", "tensors"})


def is_torch_tar(head: bytes) -> bool:
    """Return whether the first blocks of a file are those of a tar archive with one of torch's files."""
    blocks = [head[at : at + 512] for at in range(0, 2048, 512)]  # an extended header and its text may come first
    return blocks[0][257:262] == TAR_MAGIC and any(block.partition(b"\x00")[0].decode("latin-1") in MEMBERS for block in blocks)


def read_torch_tar(file: ByteSource, path: Location) -> Checkpoint:
    """Return the checkpoint in the open file.

    Raises:
        CheckpointError: E104, E105, E108, E110 to E113 or E133.
    """
    members = read_tar(file, path)
    if set(members) != MEMBERS:
        facts = {"file": path, "found": f"a tar archive of {', '.join(list(members)[:4]) or 'nothing'}", "expected": ", ".join(sorted(MEMBERS))}
        raise CheckpointError("E105", "the checkpoint is in a container that is not read", facts=facts)
    budget = Budget(file.size_bytes)
    streams = {name: PickleStream(file, path, *span, budget=budget) for name, span in members.items()}
    at = "sys_info"
    try:
        _check_machine(streams[at])
        known: dict[int, Node] = {}
        at = "storages"
        known |= _storages(streams[at])
        at = "tensors"
        known |= _tensors(streams[at], known)
        at = "pickle"
        unpickler = Unpickler(streams[at], persistent=_Known(known))
        tree = unpickler.load()
        streams[at].check_end()
        calls = locate_calls(tree, unpickler.calls)
    except MalformedPickle as err:
        raise refused(err, path, streams[at].position) from err
    return Checkpoint(path, "torch tar", file.size_bytes, tree, tuple(unpickler.globals), calls)


def _facts(stream: PickleStream) -> Node:
    """Return the value of a pickle beside the tree; it may name a class, and calls nothing."""
    unpickler = Unpickler(stream)
    value = unpickler.load()
    if unpickler.calls:
        raise MalformedPickle("a call in a pickle of plain values")
    return value


def _check_machine(stream: PickleStream) -> None:
    machine = _facts(stream)
    stream.check_end()
    if not isinstance(machine, Mapping):
        raise MalformedPickle("no facts of the machine that wrote it")
    if machine.get("little_endian") is not True:
        raise MalformedPickle("a file of a big-endian machine", code="E108")


def _storages(stream: PickleStream) -> dict[int, TypedStorage]:
    """Return key -> storage."""
    known: dict[int, TypedStorage] = {}
    for _ in range(_number(_facts(stream))):
        key, _, kind = _tuple(_facts(stream), 3)
        dtype = STORAGE_DTYPES.get(str(kind)) if isinstance(kind, GlobalRef) else None
        if dtype is None:
            raise MalformedPickle(f"the storage class {brief(kind)}", code="E113")
        count = int.from_bytes(_exactly(stream, 8), "little")
        size = count * element_bytes(dtype)
        if size > stream.end - stream.position:
            raise MalformedPickle(f"a storage of {size} bytes where {stream.end - stream.position} are left", code="E104")
        known[_new(key, known)] = _typed(stream, str(key), stream.position, dtype, count)
        stream.skip(size)
    parts = _facts(stream)
    for part in parts if isinstance(parts, list) else [None]:
        target, root, begin, count = (_number(value) for value in _tuple(part, 4))
        whole = known.get(root)
        if whole is None or begin + count > whole.num_declared:
            raise MalformedPickle(f"elements {begin} to {begin + count} of a storage that has not as many", code="E112")
        offset = whole.offset + begin * element_bytes(whole.dtype)
        known[_new(target, known)] = _typed(stream, whole.key, offset, whole.dtype, count)
    stream.check_end()
    return known


def _tensors(stream: PickleStream, storages: Mapping[int, Node]) -> dict[int, TensorRef]:
    """Return key -> tensor."""
    known: dict[int, TensorRef] = {}
    for _ in range(_number(_facts(stream))):
        key, storage, _ = _tuple(_facts(stream), 3)
        (rank,) = struct.unpack("<i", _exactly(stream, 8)[:4])  # the other four bytes were never anything
        if not 0 <= rank <= MAX_DIMENSIONS:
            raise MalformedPickle(f"a tensor of {rank} axes", code="E112")
        numbers = struct.unpack(f"<{2 * rank + 1}q", _exactly(stream, 8 * (2 * rank + 1)))
        if _number(storage) not in storages or _new(key, known) in storages:
            raise MalformedPickle("a tensor without a storage, or with the key of one", code="E112")
        known[_number(key)] = tensor_view(storages[_number(storage)], numbers[-1], numbers[:rank], numbers[rank:-1])
    stream.check_end()
    return known


class _Known:
    """Turns the persistent ids of the tree, keys as text, into tensors and storages."""

    def __init__(self, known: Mapping[int, Node]) -> None:
        self._known = known

    def __call__(self, persistent_id: Node) -> Node:
        if isinstance(persistent_id, tuple) and len(persistent_id) == 4 and persistent_id[0] == "module":
            return class_with_source(persistent_id)
        if isinstance(persistent_id, str) and persistent_id.isascii() and persistent_id.isdigit() and len(persistent_id) < 20:
            found = self._known.get(int(persistent_id))
            if found is not None:
                return found
        raise MalformedPickle("a persistent id that names no tensor and no storage", code="E112")


def _typed(stream: PickleStream, key: str, offset: int, dtype: str, count: int) -> TypedStorage:
    fields = (key, stream.path, offset, count * element_bytes(dtype))
    return TypedStorage(*fields, plain=StorageRef(*fields), dtype=dtype, num_declared=count)


def _exactly(stream: PickleStream, count: int) -> bytes:
    content = stream.read(count)
    if len(content) < count:
        raise MalformedPickle("an end in the middle of a number")
    return content


def _tuple(node: Node, count: int) -> tuple[Node, ...]:
    if not isinstance(node, tuple) or len(node) != count:
        raise MalformedPickle(f"something else than {count} values")
    return node


def _number(node: Node) -> int:
    if type(node) is not int or not 0 <= node < 1 << 64:
        raise MalformedPickle("something else than a count or a key")
    return node


def _new(key: Node, known: Mapping[int, object]) -> int:
    number = _number(key)
    if number in known:
        raise MalformedPickle(f"the key {number} twice", code="E112")
    return number
