"""Flax's MessagePack files (``flax.serialization.to_bytes``): a tree of dicts with arrays, which stay ranges of bytes of the file.

An array is a value of the extension type 1: shape, name of the dtype, bytes; a NumPy scalar the same of type 3; type 2 is a complex
number. An array above a gigabyte is cut into flat chunks. There are no checksums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from exporter.artifacts import Checkpoint, Node, ShardRef, StorageRef, TensorRef
from exporter.checkpoint.messagepack import Bytes, Extension, Malformed, MapHeader, Reader, Sequence
from exporter.checkpoint.whole_tensor import row_major, whole_tensor
from exporter.errors import CheckpointError
from exporter.locations import Location
from exporter.tensors.dtypes import DTYPES
from exporter.tensors.sources import ByteSource
from exporter.tensors.views import MAX_DIMENSIONS

__all__ = ["is_flax", "read_flax"]

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_MAX_VALUES = 200_000
_MAX_LEVELS = 100
_MAX_SIZE = 1 << 62
_DTYPES = {dtype.numpy: dtype for dtype in DTYPES.values() if dtype.numpy}


def is_flax(head: bytes) -> bool:
    """Return whether a file that begins with ``head`` is a map whose first key is text."""
    behind = 1 if 0x81 <= head[0] <= 0x8F else {0xDE: 3, 0xDF: 5}.get(head[0], 0)
    if not behind or len(head) < behind + 3:
        return False
    key = head[behind]
    begin = behind + (1 if 0xA1 <= key <= 0xBF else {0xD9: 2, 0xDA: 3}.get(key, 0))
    return begin > behind and (head[begin : begin + 1].isalnum() or head[begin : begin + 1] == b"_")


def read_flax(file: ByteSource, path: Location) -> Checkpoint:
    """Return the checkpoint in the open file.

    Raises:
        CheckpointError: it is damaged, or no tree of dicts and arrays (E144); an array has an unknown dtype (E113).
    """
    tree = _Tree(Reader(file), path)
    try:
        root = tree.whole()
    except Malformed as err:
        facts = {"file": path, "found": err, "expected": "what flax.serialization.to_bytes writes"}
        raise CheckpointError("E144", "the MessagePack file is damaged or not one of Flax", facts=facts) from err
    return Checkpoint(path, "Flax msgpack", file.size_bytes, root)


class _Tree:
    """Puts the values together; bounded in number and depth."""

    def __init__(self, reader: Reader, path: Location) -> None:
        self.reader = reader
        self._path = path
        self._count = 0

    def whole(self) -> Node:
        """Return the tree, behind which the file must end."""
        root = self.read("", 0)
        if not self.reader.is_at_end:
            raise Malformed(f"bytes behind the end of the tree, at byte {self.reader.position}")
        return root

    def read(self, at: str, level: int) -> Node:
        """Return the next value with all that is below it."""
        self._count += 1
        if self._count > _MAX_VALUES or level > _MAX_LEVELS:
            raise Malformed(f"more than {_MAX_VALUES} values, or {_MAX_LEVELS} levels, at {at[:80]!r}")
        value = self.reader.value()
        if isinstance(value, MapHeader):
            return self._map(value.count, at, level)
        if isinstance(value, Sequence):
            return [self.read(f"{at}/[{index}]", level + 1) for index in range(value.count)]
        if isinstance(value, Extension):
            return self._extension(value, at)
        return f"{value.size_bytes} bytes, not read" if isinstance(value, Bytes) else value

    def _map(self, count: int, at: str, level: int) -> Node:
        found: dict[str, Node] = {}
        for _ in range(count):
            key = self.reader.value()
            if isinstance(key, bool) or not isinstance(key, (str, int)):
                raise Malformed(f"a key that is neither text nor a number, at {at[:80]!r}")
            name = str(key)
            if name in found:
                raise Malformed(f"the key {name[:80]!r} twice, at {at[:80]!r}")
            found[name] = self.read(f"{at}/{name}" if at else name, level + 1)
        return _joined(found, at, self._path) if _CHUNKED in found else found

    def _extension(self, head: Extension, at: str) -> Node:
        if head.kind in {_ARRAY, _SCALAR}:
            value: Node = self._array(at)
        elif head.kind == _COMPLEX:
            parts = [self.reader.value() for _ in range(3)]
            if parts[0] != Sequence(2) or not all(type(part) in {int, float} for part in parts[1:]):
                raise Malformed(f"a complex number of other parts, at {at[:80]!r}")
            value = complex(parts[1], parts[2])  # type: ignore[arg-type]
        else:
            raise Malformed(f"a value of the extension type {head.kind}, at {at[:80]!r}")
        if self.reader.position != head.end:
            raise Malformed(f"a value that ends at byte {self.reader.position}, where {head.end} is written, at {at[:80]!r}")
        return value

    def _array(self, at: str) -> TensorRef:
        if self.reader.value() != Sequence(3):
            raise Malformed(f"an array that is not shape, dtype and bytes, at {at[:80]!r}")
        axes = self.reader.value()
        if not isinstance(axes, Sequence) or axes.count > MAX_DIMENSIONS:
            raise Malformed(f"an array with no shape, or more than {MAX_DIMENSIONS} axes, at {at[:80]!r}")
        shape = tuple(_size(self.reader.value(), at) for _ in range(axes.count))
        name, content = self.reader.value(), self.reader.value()
        dtype = _DTYPES.get(name) if isinstance(name, str) else None
        if dtype is None:
            raise CheckpointError("E113", "a tensor has an unknown dtype", facts={"file": self._path, "at": at, "found": str(name)[:80]})
        if not isinstance(content, Bytes) or content.size_bytes != prod(shape) * dtype.size_bytes:
            raise Malformed(f"{name} {shape} with other bytes than that takes, at {at[:80]!r}")
        return whole_tensor(at, self._path, content.offset, content.size_bytes, dtype.name, shape)


def _size(value: object, at: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MAX_SIZE:
        raise Malformed(f"an axis that is no number of elements, at {at[:80]!r}")
    return value


def _joined(found: Mapping[str, Node], at: str, path: Location) -> TensorRef:
    """Return an array that was cut into flat chunks: each becomes the few boxes that a run of elements is made of."""
    shape = tuple(_size(value, at) for value in _listed(found.get("shape"), at))
    chunks = _listed(found.get("chunks"), at)
    shards: list[ShardRef] = []
    dtype, done = "", 0
    for chunk in chunks:
        if not isinstance(chunk, TensorRef) or len(chunk.shape) != 1 or chunk.shards or dtype not in {"", chunk.dtype}:
            raise Malformed(f"a chunk that is no flat array like the others, at {at[:80]!r}")
        dtype, position, begin, done = chunk.dtype, 0, done, done + chunk.num_elements
        for place, sizes in _boxes(shape, begin, done) if done <= prod(shape) else ():
            shards.append(ShardRef(place, TensorRef(dtype, sizes, row_major(sizes), position, chunk.storage)))
            position += prod(sizes)
    if not dtype or not shape or len(shape) > MAX_DIMENSIONS or done != prod(shape) or set(found) != {_CHUNKED, "shape", "chunks"}:
        raise Malformed(f"chunks that do not make up an array of shape {shape}, at {at[:80]!r}")
    storage = StorageRef(at, path, 0, prod(shape) * DTYPES[dtype].size_bytes)
    return TensorRef(dtype, shape, row_major(shape), 0, storage, shards=tuple(shards))


def _listed(node: Node, at: str) -> list[Node]:
    """Return the values under 0, 1, 2, ..."""
    if not isinstance(node, Mapping) or set(node) != {str(index) for index in range(len(node))}:
        raise Malformed(f"chunks that are not numbered, at {at[:80]!r}")
    return [node[str(index)] for index in range(len(node))]


def _boxes(shape: tuple[int, ...], begin: int, end: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield where the boxes begin, and their sizes, that elements ``begin`` to ``end`` in row-major order are made of, in that order."""
    if begin >= end:
        return
    row, rest = prod(shape[1:]), shape[1:]
    first, last = -(-begin // row), end // row  # of the whole rows
    if first > last:  # all within one row
        yield from _inside(last, _boxes(rest, begin - last * row, end - last * row))
        return
    if begin % row:
        yield from _inside(first - 1, _boxes(rest, begin - (first - 1) * row, row))
    if first < last:
        yield (first, *[0] * len(rest)), (last - first, *rest)
    if end % row:
        yield from _inside(last, _boxes(rest, 0, end - last * row))


def _inside(index: int, boxes: Iterator[tuple[tuple[int, ...], tuple[int, ...]]]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    return (((index, *begin), (1, *sizes)) for begin, sizes in boxes)
