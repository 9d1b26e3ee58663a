"""Strict reading of a safetensors header: it has one meaning, or the file is refused.

Layout: eight bytes little-endian length N, N bytes of JSON, then the tensors' bytes without gaps. JSON parsers disagree about
duplicate keys, so two programs can see different tensors in one file; here a duplicate refuses the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from exporter.errors import CheckpointError
from exporter.locations import Location
from exporter.tensors.bounded_json import MalformedJson, parse_json
from exporter.tensors.dtypes import Dtype, dtype_from_safetensors
from exporter.tensors.sources import ByteSource
from exporter.tensors.views import MAX_DIMENSIONS

__all__ = ["MAX_HEADER_BYTES", "SafetensorsEntry", "SafetensorsHeader", "read_header"]

MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class SafetensorsEntry:
    """One tensor; ``begin`` and ``end`` are absolute positions in the file."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """A header that passed every check; entries in the order of their bytes."""

    entries: tuple[SafetensorsEntry, ...]
    metadata: dict[str, str] = field(default_factory=dict)


class _Refused(ValueError):
    """A reason to refuse the header: found, and what was expected."""


def read_header(file: ByteSource, path: Location) -> SafetensorsHeader:
    """Read and check the header of the open file ``file``.

    Raises:
        CheckpointError: E114, saying what is wrong and in which tensor.
    """
    file_size = file.size_bytes
    try:
        length = int.from_bytes(file.read(8, 0), "little")
        text = file.read(length, 8) if 2 <= length <= min(MAX_HEADER_BYTES, file_size - 8) else b""
        return _parse(text, 8 + length, file_size)
    except _Refused as err:
        raise CheckpointError("E114", "the header of the safetensors file breaks its format", facts={"file": path, "found": err}) from err


def _parse(text: bytes, data_start: int, file_size: int) -> SafetensorsHeader:
    if not text:
        raise _Refused(f"a header of {data_start - 8} bytes in a file of {file_size}")
    if not text.startswith(b"{"):
        raise _Refused("a header that does not begin with '{'")
    try:
        table = parse_json(text.rstrip(b" "))
    except MalformedJson as err:
        raise _Refused(f"a header that holds {err}") from err
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Refused("a __metadata__ that is not text by name")
    entries = [_entry(name, item, data_start) for name, item in table.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    position = data_start
    for entry in entries:
        if entry.begin != position:
            raise _Refused(f"a {'gap' if entry.begin > position else 'overlap'} before tensor {entry.name[:80]!r}")
        position = entry.end
    if position != file_size:
        raise _Refused(f"tensors that end at byte {position} in a file of {file_size}")
    return SafetensorsHeader(tuple(entries), metadata)


def _entry(name: str, item: object, data_start: int) -> SafetensorsEntry:
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise _Refused(f"tensor {name[:80]!r} without exactly dtype, shape and data_offsets")
    dtype = dtype_from_safetensors(item["dtype"]) if isinstance(item["dtype"], str) else None
    if dtype is None:
        raise _Refused(f"tensor {name[:80]!r} of unknown dtype {str(item['dtype'])[:40]!r}")
    shape, offsets = item["shape"], item["data_offsets"]
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise _Refused(f"tensor {name[:80]!r} with the shape {str(shape)[:80]}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise _Refused(f"tensor {name[:80]!r} with the data_offsets {str(offsets)[:80]}")
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.size_bytes:
        raise _Refused(f"tensor {name[:80]!r}: {end - begin} bytes for {dtype.name} of shape {tuple(shape)}")
    return SafetensorsEntry(name, dtype, tuple(shape), data_start + begin, data_start + end)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)
