"""Stage 1: a file as written by training, as a tree of plain values and references to tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from exporter.artifacts.provenance import Digest
from exporter.locations import Location

__all__ = ["Checkpoint", "GlobalRef", "Node", "ObjectRef", "ShardRef", "StorageRef", "TensorRef", "brief", "walk"]


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A run of bytes in a file that tensors look into."""

    key: str
    """Name of the storage inside the container; tensors with the same key share memory."""
    path: Location
    offset: int
    """Absolute position of the first byte in ``path``."""
    size_bytes: int
    crc32: int | None = None
    """What the container says of these bytes; None where it says nothing (safetensors)."""
    crc32c: int | None = None
    """The same by another polynomial, Castagnoli's, where the container uses that (TensorFlow)."""


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor that was not loaded: a strided view of a storage.

    Attributes:
        dtype: torch's name without prefix: ``float32``, ``float16``, ``bfloat16``, ``int64``, ``bool``, ``float8_e4m3fn``, ...
        strides: in elements.
        offset: of the first element, in elements from the start of the storage.
        shards: the boxes that it is put together from, where it was saved in parts; they tile it exactly. Its own storage then
            only counts their bytes: there is no place in a file where they stand one after the other.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    storage: StorageRef
    is_parameter: bool = False
    shards: tuple[ShardRef, ...] = ()

    @property
    def num_elements(self) -> int:
        """Return the number of elements of the view."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class ShardRef:
    """One box of a tensor that was saved in parts: where it begins on every axis, and its elements."""

    begin: tuple[int, ...]
    tensor: TensorRef


@dataclass(frozen=True, slots=True)
class GlobalRef:
    """A global (class or function) that a pickle names; a record, never imported and never called."""

    module: str
    name: str

    def __str__(self) -> str:
        """Return ``module.name``."""
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class ObjectRef:
    """What a pickle would have constructed from ``callee``: an inert record of its arguments, state and items."""

    callee: GlobalRef
    args: tuple[Node, ...] = ()
    state: Node = None
    items: Mapping[Any, Node] | list[Node] | None = None
    """What the pickle appended or set on the object (subclasses of list and dict)."""
    is_call: bool = False
    """True where the pickle *calls* (REDUCE) rather than makes an instance (NEWOBJ)."""


Node: TypeAlias = (
    "None | bool | int | float | complex | str | bytes | TensorRef | StorageRef | GlobalRef | ObjectRef"
    " | Mapping[Any, Node] | list[Node] | tuple[Node, ...] | set[Node] | frozenset[Node]"
)


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A file, or several that belong together, as written by training: a tree of plain values and tensor references.

    Attributes:
        path: what the user named: the file or URL, or the folder or index of several.
        container: ``torch zip``, ``safetensors``, ...
        size_bytes: of all files together.
        root: the tree; for safetensors a flat mapping of names to tensors.
        globals: every global that the file names, in order of first use.
        calls: the globals that the file would have *called* and that are not among those which trainers write;
            key path -> global. A stage refuses such a file; ``exporter inspect`` shows it.
        metadata: what the container itself says (safetensors ``__metadata__``, torch zip version and byte order).
        contents: what identifies the file without reading its tensors: where the container has a checksum for each of them, or a
            server says which version of a remote file it is.
        files: every file that was read or that tensors stand in, where ``path`` is not the only one; else empty.
    """

    path: Location
    container: str
    size_bytes: int
    root: Node
    globals: tuple[GlobalRef, ...] = ()
    calls: Mapping[str, GlobalRef] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Location, ...] = ()
    contents: Digest | None = None


def brief(node: object, most: int = 80) -> str:
    """Return a node as text of at most ``most`` characters, or what it is where its text could be long: containers may share their parts."""
    if isinstance(node, (str, bytes)):
        return str(node[:most])[:most]
    if isinstance(node, (int, float, complex, GlobalRef)) or node is None:
        return str(node)[:most]
    if isinstance(node, (tuple, list)) and len(node) <= 8 and all(type(item) is int for item in node):
        return str(node)[:most]
    return f"{type(node).__name__} of {len(node)}" if isinstance(node, Sized) else type(node).__name__


_MAX_PATH, _MAX_LABEL = 400, 400
_LEAVES = frozenset({str, int, float, bool, type(None), bytes, complex, TensorRef, GlobalRef, StorageRef})


def walk(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Yield ``(key path, node)`` for every node below and including ``node``, depth first, each container once.

    Key paths read as in ``state_dict_ema/layer1.0.weight``, ``optimizer/param_groups/[0]/lr`` and, inside a pickled object,
    ``ema.<state>/_modules/...``. Keys and paths of a length that no name has are cut.
    """
    seen: set[int] = set()
    todo: list[tuple[str, str, Node]] = [(path, "", node)]
    while todo:
        before, label, item = todo.pop()
        here = before + label
        yield here, item
        if type(item) in _LEAVES or id(item) in seen:
            continue
        seen.add(id(item))
        here = here if len(here) <= _MAX_PATH else here[:_MAX_PATH] + "..."
        prefix = f"{here}/" if here else ""
        children: list[tuple[str, str, Node]] = []
        if isinstance(item, Mapping):
            children = [(prefix, _label(key), value) for key, value in item.items()]
        elif isinstance(item, (list, tuple)):
            children = [(prefix, f"[{index}]", value) for index, value in enumerate(item)]
        elif isinstance(item, (set, frozenset)):
            children = [(prefix, "{}", value) for value in item]
        elif isinstance(item, ObjectRef):
            children = [(prefix, "<args>", item.args)] if item.args else []
            if item.state is not None:
                children.append((here, ".<state>", item.state))
            if item.items is not None:
                children.append((here, ".<items>", item.items))
        todo.extend(reversed(children))


def _label(key: Node) -> str:
    return key if isinstance(key, str) and len(key) <= _MAX_LABEL else brief(key, _MAX_LABEL)
