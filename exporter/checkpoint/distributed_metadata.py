"""The ``.metadata`` of torch.distributed.checkpoint: which item of which file holds which box of which tensor.

It is a pickle of dataclasses. Nothing of torch is imported: the records that the inert unpickler leaves are read field by field,
and every field is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from exporter.artifacts import GlobalRef, Node, ObjectRef, brief
from exporter.tensors.dtypes import DTYPES
from exporter.tensors.views import MAX_DIMENSIONS

__all__ = ["Item", "MalformedMetadata", "Saved", "read_records"]

_MODULES = "torch.distributed."
_MAX_DEPTH = 64


class MalformedMetadata(ValueError):
    """The metadata breaks a rule that torch keeps."""


@dataclass(frozen=True, slots=True)
class Item:
    """A run of bytes of one file: one archive of torch.save."""

    file: str
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Saved:
    """One entry of what was saved.

    Attributes:
        name: its flattened name: ``ema.module.conv.weight``.
        path: the keys that lead to it in the dict that was saved: ``("ema", "module.conv.weight")``.
        dtype, shape: of the whole tensor; empty and None for a value that is no tensor.
        boxes: where each part begins, its sizes, and its item; a value that is no tensor has one, without axes.
    """

    name: str
    path: tuple[str | int, ...]
    dtype: str
    shape: tuple[int, ...] | None
    boxes: tuple[tuple[tuple[int, ...], tuple[int, ...], Item], ...]


def read_records(tree: Node) -> tuple[Saved, ...]:
    """Return the entries of the unpickled ``.metadata``, in its order.

    Raises:
        MalformedMetadata: a field is missing, of another type, or contradicts another.
    """
    metadata = _fields(tree, "Metadata")
    entries, storage, paths = metadata.get("state_dict_metadata"), metadata.get("storage_data"), metadata.get("planner_data")
    if not isinstance(entries, Mapping) or not isinstance(storage, Mapping):
        raise MalformedMetadata("no tables `state_dict_metadata` and `storage_data`")
    items = _items(storage)
    found = []
    for name, entry in entries.items():
        if not isinstance(name, str):
            raise MalformedMetadata(f"an entry whose name is a {type(name).__name__}")
        path = _path(name, paths.get(name, (name,)) if isinstance(paths, Mapping) else (name,))
        if _kind(entry) == "BytesStorageMetadata":
            found.append(Saved(name, path, "", None, (((), (), _take(items, name, None)),)))
        else:
            found.append(_tensor(name, path, entry, items))
    if items:
        raise MalformedMetadata(f"stored parts that belong to no entry: {next(iter(items))[0][:80]!r}")
    return tuple(found)


_Items = dict[tuple[str, "tuple[int, ...] | None"], Item]


def _items(storage: Mapping[Node, Node]) -> _Items:
    """Return (name, beginning of the box) -> item."""
    items: _Items = {}
    for index, place in storage.items():
        key, info = _fields(index, "MetadataIndex"), _fields(place, "_StorageInfo")
        name, begin = key.get("fqn"), key.get("offset")
        file, offset, length = info.get("relative_path"), info.get("offset"), info.get("length")
        if not isinstance(name, str) or not isinstance(file, str) or not _is_count(offset) or not _is_count(length):
            raise MalformedMetadata(f"a stored part without name, file, offset or length: {brief(name)!r}")
        if info.get("transform_descriptors"):
            raise MalformedMetadata(f"{name[:80]!r} written through an extension: {_named(info['transform_descriptors'])}")
        where = (name, None if begin is None else _sizes(name, begin))
        if where in items:
            raise MalformedMetadata(f"the same part of {name[:80]!r} twice")
        items[where] = Item(file, offset, length)
    return items


def _named(descriptors: Node) -> str:
    """Return what the extensions are, as far as they are written plainly."""
    return ", ".join(map(brief, descriptors[:4])) if isinstance(descriptors, list) else brief(descriptors)


def _tensor(name: str, path: tuple[str | int, ...], entry: Node, items: _Items) -> Saved:
    fields = _fields(entry, "TensorStorageMetadata")
    shape, chunks, properties = _sizes(name, fields.get("size")), fields.get("chunks"), fields.get("properties")
    state = properties.state if isinstance(properties, ObjectRef) else None
    dtype = state[0] if isinstance(state, tuple) and state else state.get("dtype") if isinstance(state, Mapping) else None
    if not isinstance(dtype, GlobalRef) or dtype.module != "torch" or dtype.name not in DTYPES:
        raise MalformedMetadata(f"{name[:80]!r} with the dtype {brief(dtype)}")
    if not isinstance(chunks, list) or not chunks:
        raise MalformedMetadata(f"{name[:80]!r} without parts")
    boxes = []
    for chunk in chunks:
        fields = _fields(chunk, "ChunkStorageMetadata")
        begin, sizes = _sizes(name, fields.get("offsets")), _sizes(name, fields.get("sizes"))
        if not len(begin) == len(sizes) == len(shape) or any(b + s > n for b, s, n in zip(begin, sizes, shape, strict=True)):
            raise MalformedMetadata(f"a part of {name[:80]!r} at {begin} of {sizes} in a tensor of {shape}")
        if 0 in sizes and (name, begin) not in items:
            continue  # processes without a share may have written the same empty box
        boxes.append((begin, sizes, _take(items, name, begin)))
    return Saved(name, path, dtype.name, shape, tuple(boxes))


def _take(items: _Items, name: str, begin: tuple[int, ...] | None) -> Item:
    item = items.pop((name, begin), None)
    if item is None:
        raise MalformedMetadata(f"no stored part for {name[:80]!r}" + (f" at {begin}" if begin is not None else ""))
    return item


def _path(name: str, path: Node) -> tuple[str | int, ...]:
    steps: list[str | int] = []
    for step in path if isinstance(path, (tuple, list)) else ():
        if not isinstance(step, str) and not _is_count(step):
            raise MalformedMetadata(f"the path {brief(path)} of {name[:80]!r}")
        steps.append(step)
    if not 0 < len(steps) <= _MAX_DEPTH:
        raise MalformedMetadata(f"the path {brief(path)} of {name[:80]!r}")
    return tuple(steps)


def _kind(node: Node) -> str:
    return node.callee.name if isinstance(node, ObjectRef) and node.callee.module.startswith(_MODULES) else ""


def _fields(node: Node, kind: str) -> Mapping[str, Node]:
    """Return the fields of a record of torch's dataclass ``kind``."""
    state = node.state if isinstance(node, ObjectRef) else None
    if _kind(node) != kind or not isinstance(state, Mapping):
        raise MalformedMetadata(f"{brief(node.callee if isinstance(node, ObjectRef) else type(node).__name__)} where torch writes a {kind}")
    return state


def _sizes(name: str, node: Node) -> tuple[int, ...]:
    if not isinstance(node, (tuple, list)) or len(node) > MAX_DIMENSIONS or not all(_is_count(size) for size in node):
        raise MalformedMetadata(f"{name[:80]!r} with the sizes {brief(node)}")
    return tuple(node)  # type: ignore[arg-type]


def _is_count(node: Node) -> TypeGuard[int]:
    return type(node) is int and 0 <= node < 1 << 63
