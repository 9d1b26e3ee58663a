"""TensorFlow's checkpoints: an index (``.index``) and data files beside it (``.data-00000-of-00001``), read without TensorFlow.

The index is a sorted table: name -> dtype, shape, data file, range of bytes and CRC-32C. So a tensor is a range of bytes of a data file
like that of any other container. A variable that was saved in parts is put together from its slices. Text is not read, except the
object graph of ``tf.train.Checkpoint``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from exporter.artifacts import Checkpoint, Digest, Node, ShardRef, StorageRef, TensorRef
from exporter.checkpoint.protobuf import Malformed, read_varint
from exporter.checkpoint.sorted_table import Compressed, read_table
from exporter.checkpoint.tensorflow_entries import DTYPES_BY_NUMBER, TEXT, Entry, read_entry, read_header, slice_key
from exporter.checkpoint.tensorflow_objects import OBJECT_GRAPH, read_object_graph
from exporter.checkpoint.whole_tensor import row_major, whole_tensor
from exporter.errors import CheckpointError
from exporter.locations import Location, RemotePath
from exporter.tensors.crc32c import crc32c
from exporter.tensors.dtypes import DTYPES
from exporter.tensors.shards import NotTiled, check_tiling
from exporter.tensors.sources import ByteSource, open_regular

__all__ = ["INDEX_SUFFIX", "read_bundle"]

INDEX_SUFFIX = ".index"

_MAX_INDEX_BYTES = 1 << 26
_MAX_GRAPH_BYTES = 1 << 26
_MAX_STEPS = 1_000_000
"""Of checking that slices tile their tensors, all together."""
_SLICE = b"\x00"
"""Keys of slices begin so: names do not."""


class _Unfit(ValueError):
    """Index and data files do not fit together; the text says what was found."""


def read_bundle(file: ByteSource, path: Location, *, named: Location | None = None) -> Checkpoint:
    """Return the checkpoint whose index is open.

    The tree has ``variables``, name -> tensor, and ``objects``, the object graph where there is one.

    Args:
        file: the index.
        path: of the index; the data files stand beside it under the same name.
        named: what the user named, where that is not the index.

    Raises:
        CheckpointError: the index is damaged (E140) or compressed (E142), does not fit the data files (E141), or is big-endian (E108);
            a tensor has an unknown dtype (E113).
    """
    index = _whole(file, path)
    facts: dict[str, object] = {"file": path}
    try:
        entries, num_files = _entries(index, path)
        found = _Data(path, num_files)
        found.check(entries)
        root = _tree(entries, found, path)
    except Compressed as err:
        facts |= {"found": err, "expected": "blocks as they are, as TensorFlow writes them"}
        raise CheckpointError("E142", "the index of the TensorFlow checkpoint is compressed", facts=facts) from err
    except Malformed as err:
        facts |= {"found": err, "expected": "the index of a TensorFlow checkpoint"}
        raise CheckpointError("E140", "the index of the TensorFlow checkpoint is damaged", facts=facts) from err
    except _Unfit as err:
        facts |= {"found": err, "expected": "data files that hold what the index says"}
        help_text = "copy all files of the checkpoint again, under the names that TensorFlow gave them"
        raise CheckpointError("E141", "the index and the data files of the TensorFlow checkpoint do not fit", facts=facts, help=help_text) from err
    metadata = {"data files": str(num_files)}
    size = len(index) + sum(found.sizes.values())
    contents = Digest(hashlib.sha256(b"exporter tensorflow contents 1\0" + index).hexdigest(), "contents")
    files = (path, *found.paths.values())
    return Checkpoint(named or path, "TensorFlow", size, root, metadata=metadata, files=files, contents=contents)


def _whole(file: ByteSource, path: Location) -> bytes:
    size = file.size_bytes
    if size > _MAX_INDEX_BYTES:
        facts = {"file": path, "found": f"an index of {size} bytes", "expected": f"at most {_MAX_INDEX_BYTES}"}
        raise CheckpointError("E111", "a part of the checkpoint is larger than any trainer writes it", facts=facts)
    return file.read(size, 0)


def _entries(index: bytes, path: Location) -> tuple[dict[bytes, Entry], int]:
    """Return the entries by key, in the order of the table, and the number of data files."""
    rows = read_table(index)
    key, value = next(rows, (b"?", b""))
    if key:
        raise Malformed("a table that begins with no header")
    num_files, is_little = read_header(value)
    if not is_little:
        facts = {"file": path, "found": "big-endian numbers", "expected": "little-endian ones"}
        raise CheckpointError("E108", "the checkpoint was written in another byte order", facts=facts)
    return {key: read_entry(value) for key, value in rows}, num_files


class _Data:
    """The data files that the entries need: ``paths`` and ``sizes`` by number."""

    def __init__(self, index: Location, count: int) -> None:
        self._index, self._count = index, count
        self.paths: dict[int, Location] = {}
        self.sizes: dict[int, int] = {}

    def check(self, entries: Mapping[bytes, Entry]) -> None:
        """Check that the ranges of all entries lie in their files, one after the other."""
        reached: dict[int, int] = {}
        stored = [(entry.shard, entry.offset, entry.size_bytes, key) for key, entry in entries.items() if not entry.slices]
        for shard, offset, size, key in sorted(stored):
            self._open(shard)
            if size and (offset < reached.get(shard, 0) or offset + size > self.sizes[shard]):
                where = f"of the {self.sizes[shard]} bytes of {self.paths[shard].name}"
                raise _Unfit(f"{key[:80]!r} at bytes {offset} to {offset + size} {where}, {reached.get(shard, 0)} of them taken already")
            reached[shard] = max(reached.get(shard, 0), offset + size)

    def read(self, entry: Entry) -> bytes:
        """Return the bytes of an entry."""
        with open_regular(self.paths[entry.shard]) as file:
            return file.read(entry.size_bytes, entry.offset)

    def _open(self, shard: int) -> None:
        if shard in self.paths:
            return
        if not 0 <= shard < self._count:
            raise _Unfit(f"a tensor in data file {shard} of {self._count}")
        path = _beside(self._index, f"{self._index.name.removesuffix(INDEX_SUFFIX)}.data-{shard:05d}-of-{self._count:05d}")
        with open_regular(path) as file:
            self.paths[shard], self.sizes[shard] = file.path, file.size_bytes


def _beside(index: Location, name: str) -> Location:
    """Return the data file ``name``, which must lie beside the index, links followed: in the cache of a model hub both are links."""
    if isinstance(index, RemotePath):
        return index.beside(name)
    path = index.with_name(name)
    try:
        inside = path.resolve().parent in {index.parent.resolve(), index.resolve().parent}
    except (OSError, RuntimeError):  # a loop of links
        inside = False
    if not inside:
        facts = {"file": path, "found": "a symbolic link", "expected": "a regular file beside the index"}
        raise CheckpointError("E116", "the checkpoint leads to a file outside its folder", facts=facts)
    if not path.exists():
        raise _Unfit(f"no file {name} beside it")
    return path


def _tree(entries: Mapping[bytes, Entry], data: _Data, path: Location) -> dict[str, Node]:
    variables: dict[str, Node] = {}
    objects: Node = None
    slices = {key: entry for key, entry in entries.items() if key.startswith(_SLICE)}
    steps_left = _MAX_STEPS
    for key, entry in entries.items():
        if key in slices:
            continue
        try:
            name = key.decode("utf-8")
        except UnicodeDecodeError as err:
            raise Malformed(f"the name {key[:80]!r}, which is no text") from err
        if name == OBJECT_GRAPH:
            objects = read_object_graph(_only_text(entry, data))
        elif entry.dtype == TEXT:
            variables[name] = f"text of shape {entry.shape}, not read"
        elif entry.slices:
            variables[name], steps = _joined(name, entry, slices, data, path, steps_left)
            steps_left -= steps
        else:
            variables[name] = _tensor(name, entry, data, path)
    return {"variables": variables, "objects": objects}


def _tensor(name: str, entry: Entry, data: _Data, path: Location) -> TensorRef:
    dtype = DTYPES_BY_NUMBER.get(entry.dtype)
    if dtype is None:
        found = f"TensorFlow's dtype {entry.dtype}"
        raise CheckpointError("E113", "a tensor has an unknown dtype", facts={"file": path, "at": name, "found": found})
    size = DTYPES[dtype].size_bytes
    for axis in entry.shape:
        size *= axis  # the product of at most 64 numbers
    if size != entry.size_bytes:
        raise _Unfit(f"{name[:80]!r}: {entry.size_bytes} bytes for {dtype} {entry.shape}")
    return whole_tensor(name, data.paths[entry.shard], entry.offset, size, dtype, entry.shape, crc32c=entry.crc32c)


def _joined(name: str, entry: Entry, slices: Mapping[bytes, Entry], data: _Data, path: Location, steps_left: int) -> tuple[TensorRef, int]:
    """Return the tensor put together from its slices, and the steps that checking them took."""
    shape, shards = entry.shape, []
    for box in entry.slices:
        if len(box.begin) != len(shape):
            raise _Unfit(f"{name[:80]!r}: a slice of {len(box.begin)} axes of {len(shape)}")
        sizes = tuple(shape[axis] if length < 0 else length for axis, length in enumerate(box.length))
        part = slices.get(slice_key(name.encode(), box))
        if part is None or part.slices or (part.dtype, part.shape) != (entry.dtype, sizes):
            raise _Unfit(f"{name[:80]!r}: no slice of {sizes} from {box.begin} on")
        shards.append(ShardRef(box.begin, _tensor(name, part, data, path)))
    boxes = [(shard.begin, tuple(b + s for b, s in zip(shard.begin, shard.tensor.shape, strict=True))) for shard in shards]
    try:
        steps = check_tiling(shape, boxes, max_steps=steps_left)
    except NotTiled as err:
        raise _Unfit(f"{name[:80]!r}: {err}, where slices tile {shape} exactly") from err
    whole = next((shard.tensor for shard in shards if shard.tensor.shape == shape), None)
    if whole is not None:
        return whole, steps
    storage = StorageRef(name, path, 0, sum(shard.tensor.storage.size_bytes for shard in shards))
    return TensorRef(shards[0].tensor.dtype, shape, row_major(shape), 0, storage, shards=tuple(shards)), steps


def _only_text(entry: Entry, data: _Data) -> bytes:
    """Return a text without axes, its checksums verified: its length, the CRC-32C of that, and the text itself."""
    if entry.dtype != TEXT or entry.shape or entry.slices or entry.size_bytes > _MAX_GRAPH_BYTES:
        raise Malformed(f"an object graph of dtype {entry.dtype}, shape {entry.shape} and {entry.size_bytes} bytes")
    content = data.read(entry)
    length, position = read_varint(content, 0)
    text = content[position + 4 :]
    if length != len(text):
        raise Malformed(f"an object graph of {len(text)} bytes, where {length} are written")
    # the checksum goes over the length as a number of 4 bytes, or 8, what is stored of it, and the text
    running = crc32c(length.to_bytes(4 if length < 1 << 32 else 8, "little"))
    running = crc32c(content[position:], running)
    if running != entry.crc32c:
        facts = {"file": data.paths[entry.shard], "at": OBJECT_GRAPH, "found": f"CRC-32C {running:08x}", "expected": f"{entry.crc32c:08x}"}
        raise CheckpointError("E109", "the checkpoint is damaged: a checksum is wrong", facts=facts)
    return text
