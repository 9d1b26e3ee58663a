"""safetensors in several files: an index (``*.safetensors.index.json``) that says which tensor stands in which shard.

    {"metadata": {"total_size": 123}, "weight_map": {"layer.weight": "model-00001-of-00002.safetensors", ...}}

Index and shards have one reading together, or they are refused: a shard holds exactly the tensors that the index gives it, and
all of them together are as large as it says. A shard lies in the folder of the index. A link may stand for it only as hub
caches link whole downloads: into the folder that the index itself is linked from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from exporter.artifacts import Checkpoint, Node, TensorRef, brief
from exporter.checkpoint.safetensors_file import read_safetensors
from exporter.errors import CheckpointError
from exporter.locations import Location, RemotePath
from exporter.tensors.bounded_json import MalformedJson, parse_json
from exporter.tensors.sources import ByteSource, open_regular
from exporter.tensors.views import size_bytes

__all__ = ["INDEX_SUFFIX", "find_index", "read_shards"]

INDEX_SUFFIX = ".safetensors.index.json"
"""How an index is called, for a folder that holds one; an index that is named itself is recognised by its content."""

MAX_INDEX_BYTES = 100_000_000
_MAX_NAME, _MAX_SHARDS = 255, 20_000
_MAX_NAMES_SHOWN = 4


class _Refused(ValueError):
    """A reason to refuse the index or a shard."""


def find_index(folder: Path, names: Collection[str]) -> Path | None:
    """Return the one index among the ``names`` in ``folder``, None where it has none.

    Raises:
        CheckpointError: there are several (E132).
    """
    found = sorted(name for name in names if name.endswith(INDEX_SUFFIX))
    if len(found) > 1:
        facts = {"file": folder, "found": ", ".join(found[:_MAX_NAMES_SHOWN])}
        raise CheckpointError("E132", "the folder holds several sharded checkpoints", facts=facts, help="name the index of one")
    return folder / found[0] if found else None


def read_shards(file: ByteSource, path: Location) -> Checkpoint:
    """Return the checkpoint that the open index and the shards beside it are.

    Raises:
        CheckpointError: E132, saying what of the index does not hold; E101 to E103 and E114 of a shard; E105 where the file is JSON
            but no index.
    """
    try:
        weight_map, metadata = _parse(file, path)
        by_shard: dict[str, list[str]] = {}
        for tensor, name in weight_map.items():
            by_shard.setdefault(name, []).append(tensor)
        shards = {name: _shard_at(path, name) for name in by_shard}
        tensors: dict[str, TensorRef] = {}
        size = file.size_bytes
        for name, listed in by_shard.items():
            with open_regular(shards[name]) as shard:
                shards[name] = shard.path
                part = read_safetensors(shard, shard.path)
            size += part.size_bytes
            tensors |= _checked(part.root, name, listed)
        _check_total(metadata, tensors)
    except _Refused as err:
        facts = {"file": path, "found": err, "expected": "an index that agrees with the shards beside it"}
        raise CheckpointError("E132", "the index of a sharded checkpoint does not hold", facts=facts) from err
    texts = {key: value for key, value in metadata.items() if isinstance(value, str)}
    root = {tensor: tensors[tensor] for tensor in weight_map}
    files = (path, *shards.values())
    return Checkpoint(path, "safetensors in shards", size, root, metadata=texts | {"shards": str(len(shards))}, files=files)


def _parse(file: ByteSource, path: Location) -> tuple[dict[str, str], dict[str, Any]]:
    """Return tensor -> name of its shard, and the metadata."""
    size = file.size_bytes
    if size > MAX_INDEX_BYTES:
        raise _Refused(f"{size} bytes; an index has at most {MAX_INDEX_BYTES}")
    try:
        table = parse_json(file.read(size, 0), constants=True)
    except MalformedJson as err:
        raise _Refused(str(err)) from err
    if not isinstance(table, dict) or "weight_map" not in table:
        facts = {"file": path, "found": "JSON text that is no index of shards: it has no weight_map"}
        raise CheckpointError("E105", "the checkpoint is in a container that is not read", facts=facts)
    weight_map, metadata = table["weight_map"], table.get("metadata", {})
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
        raise _Refused("a weight_map that is no table of tensors and files")
    if not isinstance(metadata, dict):
        raise _Refused("metadata that is no table")
    if len(set(weight_map.values())) > _MAX_SHARDS:
        raise _Refused(f"more than {_MAX_SHARDS} shards")
    return weight_map, metadata


def _shard_at(index: Location, name: str) -> Location:
    """Return where the shard is; it must lie beside the index, all links followed."""
    if not name or len(name) > _MAX_NAME or not name.isprintable() or name in {".", ".."} or {"/", "\\", ":"} & set(name):
        raise _Refused(f"the file name {name[:80]!r}, which does not lie beside the index")
    if isinstance(index, RemotePath):
        return index.beside(name)
    path = index.parent / name
    try:
        if path.resolve().parent not in {index.parent.resolve(), index.resolve().parent}:
            raise _Refused(f"{name!r}, a link that leads elsewhere")
    except (OSError, RuntimeError) as err:  # a loop of links
        raise _Refused(f"{name!r}, a link that leads nowhere") from err
    return path


def _checked(root: Node, name: str, listed: list[str]) -> dict[str, TensorRef]:
    """Return the tensors of a shard, which must be those that the index lists for it."""
    held = {tensor: ref for tensor, ref in root.items() if isinstance(ref, TensorRef)} if isinstance(root, Mapping) else {}
    missing = [tensor for tensor in listed if tensor not in held]
    extra = sorted(set(held) - set(listed))
    if missing:
        raise _Refused(f"{name!r} without {_shown(missing)}")
    if extra:
        raise _Refused(f"{name!r} with {_shown(extra)}, which the index does not list there")
    return held


def _check_total(metadata: Mapping[str, Any], tensors: Mapping[str, TensorRef]) -> None:
    total, declared = sum(map(size_bytes, tensors.values())), metadata.get("total_size")
    if declared is not None and declared != total:
        raise _Refused(f"total_size {brief(declared, 40)}, and {total} bytes of tensors in the shards")


def _shown(names: list[str]) -> str:
    more = len(names) - _MAX_NAMES_SHOWN
    return ", ".join(repr(name[:80]) for name in names[:_MAX_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
