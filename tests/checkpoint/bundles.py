"""TensorFlow's checkpoints made byte by byte, so that a test decides about every field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from exporter.tensors.crc32c import crc32c

MAGIC = bytes.fromhex("57fb808b247547db")
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
NUMBERS = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "bool": 10, "float16": 19}


def masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def number(index: int, value: int) -> bytes:
    return varint(index << 3) + varint(value)


def message(index: int, content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return varint(index << 3 | 2) + varint(len(content)) + content


def fixed32(index: int, value: int) -> bytes:
    return varint(index << 3 | 5) + value.to_bytes(4, "little")


@dataclass
class Entry:
    """One row of the index, as it is to be written."""

    dtype: int = 1
    shape: tuple[int, ...] = ()
    shard: int = 0
    offset: int = 0
    size: int = 0
    crc: int = 0
    slices: Sequence[Sequence[tuple[int, int | None]]] = ()

    def encoded(self) -> bytes:
        shape = b"".join(message(2, number(1, size)) for size in self.shape)
        boxes = [
            b"".join(message(1, number(1, start) + (b"" if length is None else number(2, length))) for start, length in box) for box in self.slices
        ]
        return (
            number(1, self.dtype) + message(2, shape) + number(3, self.shard) + number(4, self.offset) + number(5, self.size)
            + fixed32(6, masked(self.crc)) + b"".join(message(7, box) for box in boxes)
        )  # fmt: skip


def header(shards: int = 1, endianness: int = 0) -> bytes:
    return number(1, shards) + number(2, endianness) + message(3, number(1, 1))


def block(rows: Sequence[tuple[bytes, bytes]], interval: int = 16) -> bytes:
    """Return a block: keys that share their beginning with the one before, except every ``interval``-th."""
    out, restarts, last = b"", [], b""
    for index, (key, value) in enumerate(rows):
        shared = 0
        if index % interval == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    restarts = restarts or [0]
    return out + b"".join(place.to_bytes(4, "little") for place in restarts) + len(restarts).to_bytes(4, "little")


def table(rows: Mapping[bytes, bytes], *, per_block: int = 3, compression: int = 0, ordered: bool = True) -> bytes:
    """Return a sorted table of ``rows``."""
    out = b""

    def add(content: bytes) -> bytes:
        nonlocal out
        handle = varint(len(out)) + varint(len(content))
        kind = bytes([compression])
        out += content + kind + masked(crc32c(content + kind)).to_bytes(4, "little")
        return handle

    items = sorted(rows.items()) if ordered else list(rows.items())
    handles = []
    for begin in range(0, len(items), per_block):
        part = items[begin : begin + per_block]
        handles.append((part[-1][0], add(block(part, interval=2))))
    filters, index = add(block([])), add(block(handles, interval=1))
    return out + (filters + index).ljust(40, b"\0") + MAGIC


@dataclass
class Bundle:
    """A checkpoint in the making: values are added, entries may be changed, then it is written."""

    data: bytes = b""
    entries: dict[bytes, Entry] = field(default_factory=dict)
    header: bytes = header()

    def add(self, name: str | bytes, value: np.ndarray, **changes: object) -> Bundle:
        value = np.asarray(value)
        content = value.tobytes()
        entry = Entry(NUMBERS[value.dtype.name], value.shape, 0, len(self.data), len(content), crc32c(content))
        self.entries[name.encode() if isinstance(name, str) else name] = replace(entry, **changes)
        self.data += content
        return self

    def add_text(self, name: str, text: bytes) -> Bundle:
        length = len(text)
        lengths = masked(crc32c(length.to_bytes(4, "little"))).to_bytes(4, "little")
        content = varint(length) + lengths + text
        crc = crc32c(length.to_bytes(4, "little") + lengths + text)
        self.entries[name.encode()] = Entry(7, (), 0, len(self.data), len(content), crc)
        self.data += content
        return self

    def rows(self) -> dict[bytes, bytes]:
        return {b"": self.header} | {key: entry.encoded() for key, entry in self.entries.items()}

    def write(self, folder: Path, name: str = "model-1", **options: object) -> Path:
        (folder / f"{name}.data-00000-of-00001").write_bytes(self.data)
        index = folder / f"{name}.index"
        index.write_bytes(table(self.rows(), **options))
        return index


def object_graph(objects: Sequence[Mapping[str, object]]) -> bytes:
    """Return the graph: each object has ``children``, ``variable`` (full name, key) and ``slots`` (of, slot, variable)."""
    out = b""
    for described in objects:
        node = b"".join(message(1, number(1, child) + message(2, name)) for name, child in dict(described.get("children", {})).items())
        if "variable" in described:
            full_name, key = described["variable"]
            node += message(2, message(1, "VARIABLE_VALUE") + message(2, full_name) + message(3, key))
        for of, slot, variable in described.get("slots", ()):
            node += message(3, number(1, of) + message(2, slot) + number(3, variable))
        out += message(1, node)
    return out
