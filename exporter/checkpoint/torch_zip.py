"""A torch zip file as a checkpoint: ``<root>/data.pkl`` is the tree, ``<root>/data/<key>`` are the storages."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from exporter.artifacts import Checkpoint, Digest, GlobalRef, Node, StorageRef, brief
from exporter.checkpoint.pickle_budget import Budget
from exporter.checkpoint.pickle_calls import locate_calls
from exporter.checkpoint.pickle_meanings import STORAGE_DTYPES, TypedStorage
from exporter.checkpoint.pickle_ops import MalformedPickle, Unpickler
from exporter.checkpoint.zip_directory import Member, Window, read_directory
from exporter.errors import CheckpointError
from exporter.locations import Location
from exporter.tensors.dtypes import DTYPES
from exporter.tensors.sources import ByteSource

__all__ = ["MAX_PICKLE_BYTES", "StorageFinder", "TorchArchive", "content_of", "read_labels", "read_torch_zip", "read_window"]

MAX_PICKLE_BYTES = 1 << 27
"""A pickle holds structure; tensors stand beside it. The largest that trainers write have some tens of MB."""

_CODE = (
    ("model.json", "a TorchScript archive of torch before 1.4: its loader runs code from the file"),
    ("serialized_exported_program.json", "an exported program of torch before 2.8: its loader runs code from the file"),
    (".data/extern_modules", "a torch.package archive: its loader runs Python sources from the file"),
)
_FOREIGN = (
    ("model.weights.h5", "a Keras archive (.keras)"),
    ("[Content_Types].xml", "an office document"),
    ("META-INF/MANIFEST.MF", "a Java archive"),
    ("AndroidManifest.xml", "an Android package"),
)

_PROVENANCE = "exporter.json"
_MAX_PROVENANCE_BYTES = 1 << 20


def read_torch_zip(file: ByteSource, path: Location, members: Mapping[str, Member] | None = None) -> Checkpoint:
    """Return the checkpoint in the open torch zip file; only ``data.pkl`` and the small text members are read.

    ``members`` are those of ``read_directory``, where the caller has read it already.

    Raises:
        CheckpointError: E105, E107 to E112 or E115.
    """
    window = Window.of(file)
    part = read_window(window, path, members)
    return Checkpoint(path, "torch zip", window.size_bytes, part.tree, part.globals, part.calls, part.metadata, contents=part.contents)


@dataclass(frozen=True, slots=True, eq=False)
class TorchArchive:
    """What one archive of torch.save holds; the fields are those of ``Checkpoint``."""

    tree: Node
    globals: tuple[GlobalRef, ...]
    calls: Mapping[str, GlobalRef]
    metadata: Mapping[str, str]
    contents: Digest


def read_window(window: Window, path: Location, members: Mapping[str, Member] | None = None, *, budget: Budget | None = None) -> TorchArchive:
    """Return what the torch zip archive in ``window``, a file or a part of one, holds.

    Raises:
        CheckpointError: E105, E107 to E112 or E115.
    """
    members = read_directory(window, path) if members is None else members
    root = _root_folder(members, path)
    metadata = read_labels(window, members, root, path)
    pickled = content_of(window.source, members[f"{root}/data.pkl"], path, limit=MAX_PICKLE_BYTES)
    unpickler = Unpickler(pickled, persistent=StorageFinder(members, f"{root}/data", path), budget=budget or Budget(window.size_bytes))
    try:
        tree = unpickler.load()
        calls = locate_calls(tree, unpickler.calls)
    except MalformedPickle as err:
        place = f"{root}/data.pkl, byte {unpickler.position}"
        facts = {"file": path, "at": place, "found": err}
        raise CheckpointError(err.code, f"the pickle in the checkpoint {err.problem}", facts=facts) from err
    return TorchArchive(tree, tuple(unpickler.globals), calls, metadata, _contents_digest(members, pickled))


def read_labels(window: Window, members: Mapping[str, Member], root: str, path: Location) -> dict[str, str]:
    """Return what the archive says of itself in small text members.

    Raises:
        CheckpointError: it was written in another byte order (E108), or a label is damaged (E109) or too long (E111).
    """
    metadata: dict[str, str] = {}
    for label in ("version", "byteorder", ".format_version"):
        if f"{root}/{label}" in members:
            text = content_of(window.source, members[f"{root}/{label}"], path, limit=64)
            metadata[label.removeprefix(".")] = text.decode("ascii", "replace").strip()
    if f"{root}/{_PROVENANCE}" in members:
        metadata |= _provenance(content_of(window.source, members[f"{root}/{_PROVENANCE}"], path, limit=_MAX_PROVENANCE_BYTES))
    if metadata.get("byteorder", "little") != "little":
        facts = {"file": path, "found": metadata["byteorder"], "expected": "little"}
        raise CheckpointError("E108", "the checkpoint was written in another byte order", facts=facts)
    return metadata


def _provenance(content: bytes) -> dict[str, str]:
    """Return what our own torch files say of themselves, as safetensors files do in their metadata; nothing where it is not that."""
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    texts = facts.items() if isinstance(facts, dict) else ()
    return {f"exporter.{key}": value for key, value in texts if isinstance(value, str)}


def _contents_digest(members: Mapping[str, Member], pickled: bytes) -> Digest:
    """Return the SHA-256 over the pickle and, in the order of the file, name, size and CRC-32 of every member."""
    digest = hashlib.sha256(b"exporter torch zip contents 1\0")
    digest.update(len(pickled).to_bytes(8, "little"))
    digest.update(pickled)
    for name, member in members.items():
        encoded = name.encode()
        digest.update(b"".join(number.to_bytes(8, "little") for number in (len(encoded), member.size_bytes, member.crc32)))
        digest.update(encoded)
    return Digest(digest.hexdigest(), "contents")


class StorageFinder:
    """Turns the persistent ids of a pickle into references to members."""

    def __init__(self, members: Mapping[str, Member], folder: str, path: Location) -> None:
        self._members = members
        self._folder = folder
        self._path = path
        self._known: dict[tuple[str, str], TypedStorage] = {}

    def __call__(self, persistent_id: Node) -> TypedStorage:
        """Return the storage that ``("storage", class, key, device, number of elements)`` stands for."""
        if not (isinstance(persistent_id, tuple) and len(persistent_id) == 5 and persistent_id[0] == "storage"):
            raise MalformedPickle("a persistent id that names no storage")
        _, kind, key, _, count = persistent_id
        dtype = STORAGE_DTYPES.get(str(kind)) if isinstance(kind, GlobalRef) else None
        if dtype is None or not isinstance(key, str) or type(count) is not int:
            raise MalformedPickle(f"a persistent id with the storage class {brief(kind)}", code="E113" if isinstance(kind, GlobalRef) else "E110")
        known = self._known.get((key, dtype))
        if known is not None and known.num_declared == count:
            return known
        member = self._members.get(f"{self._folder}/{key}")
        if member is None:
            raise MalformedPickle(f"the storage {key[:80]!r}, which is not in the file", code="E112")
        item = 1 if dtype == "untyped" else DTYPES[dtype].size_bytes
        if not 0 <= member.size_bytes - count * item < item:
            raise MalformedPickle(f"storage {key[:80]!r} with {count} elements of {item} bytes in {member.size_bytes} bytes", code="E112")
        fields = (key, self._path, member.offset, member.size_bytes, member.crc32)
        self._known[key, dtype] = typed = TypedStorage(*fields, plain=StorageRef(*fields), dtype=dtype, num_declared=count)
        return typed


def _root_folder(members: Mapping[str, Member], path: Location) -> str:
    for name, looks_like in (*_CODE, *_FOREIGN):
        if any(member == name or member.endswith("/" + name) for member in members):
            code = (name, looks_like) in _CODE
            problem = "the file is a program, not a checkpoint" if code else "the checkpoint is in a container that is not read"
            raise CheckpointError("E115" if code else "E105", problem, facts={"file": path, "found": looks_like})
    roots = {name.partition("/")[0] for name in members if "/" in name}
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) == 1 and len(roots) == 1 and all("/" in name for name in members):
        return roots.pop()
    if all(name.endswith(".npy") for name in members):
        looks_like = "a NumPy archive (.npz)"
    elif pickles:
        looks_like = f"a zip archive with more than one folder at its top: {', '.join(sorted(roots))[:120]}"
    else:
        looks_like = f"a zip archive without a data.pkl; it holds {', '.join(list(members)[:4])[:120]}"
    facts = {"file": path, "found": looks_like, "expected": "a torch zip file: one folder with data.pkl in it"}
    raise CheckpointError("E105", "the checkpoint is in a container that is not read", facts=facts)


def content_of(source: ByteSource, member: Member, path: Location, *, limit: int) -> bytes:
    """Return the bytes of a stored member, checked.

    Raises:
        CheckpointError: it has more than ``limit`` bytes (E111), or another checksum (E109).
    """
    if member.size_bytes > limit:
        facts = {"file": path, "at": member.name, "found": f"{member.size_bytes} bytes", "expected": f"at most {limit}"}
        raise CheckpointError("E111", "a part of the checkpoint is larger than any trainer writes it", facts=facts)
    content = source.read(member.size_bytes, member.offset)
    if len(content) != member.size_bytes or zlib.crc32(content) != member.crc32:
        facts = {"file": path, "at": member.name, "found": f"CRC-32 {zlib.crc32(content):08x}", "expected": f"{member.crc32:08x}"}
        raise CheckpointError("E109", "the checkpoint is damaged: a checksum is wrong", facts=facts)
    return content
