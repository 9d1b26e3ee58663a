"""A ``.pt2`` archive (``torch.export.save``, torch 2.8 or later): its parameters and buffers as a state dict, its code not run.

``data/weights/<model>_weights_config.json`` says for each name which member holds its bytes, and how they are viewed. The graph
and the constants are not looked at. A weight that was pickled (a subclass of Tensor) stays a record: it is no plain tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from exporter.artifacts import Checkpoint, GlobalRef, Node, ObjectRef, StorageRef, brief
from exporter.checkpoint.pickle_meanings import MalformedPickle, TypedStorage, tensor_view
from exporter.checkpoint.torch_zip import content_of, read_labels
from exporter.checkpoint.zip_directory import Member, Window
from exporter.errors import CheckpointError
from exporter.locations import Location
from exporter.tensors.bounded_json import MalformedJson, parse_json

__all__ = ["read_exported_program"]

MAX_CONFIG_BYTES = 1 << 26
_CONFIG_END = "_weights_config.json"
_STRIDED = 7
_DTYPES = dict(
    enumerate(
        ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "complex32", "complex64", "complex128", "bool", "bfloat16"), 1
    )
) | dict(enumerate(("uint16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "uint32", "uint64"), 28))
"""Number in the format -> dtype."""


class _Refused(ValueError):
    """A reason to refuse the configuration."""


def read_exported_program(window: Window, members: Mapping[str, Member], root: str, path: Location) -> Checkpoint:
    """Return the checkpoint in a ``.pt2`` archive whose members stand below ``root``.

    Several models in one archive stand under their names.

    Raises:
        CheckpointError: E108, E109, E111, or E134: the configuration breaks its format or does not fit the members.
    """
    metadata = read_labels(window, members, root, path)
    folder = f"{root}/data/weights/"
    kind = content_of(window.source, members[f"{root}/archive_format"], path, limit=64)
    at = f"{root}/archive_format"
    models: dict[str, Node] = {}
    try:
        for name in _configs(kind, members, folder):
            at = name
            config = _config(content_of(window.source, members[at], path, limit=MAX_CONFIG_BYTES))
            model = at[len(folder) : -len(_CONFIG_END)]
            models[model] = {weight: _weight(weight, entry, members, folder, path) for weight, entry in config.items()}
    except (_Refused, MalformedPickle) as err:
        facts = {"file": path, "at": at, "found": err, "expected": "an archive as torch.export.save writes it"}
        raise CheckpointError("E134", "the program in the checkpoint breaks its format", facts=facts) from err
    tree = next(iter(models.values())) if len(models) == 1 else models
    return Checkpoint(path, "torch.export, its code not run", window.size_bytes, tree, metadata=metadata | {"code": "not run"})


def _configs(kind: bytes, members: Mapping[str, Member], folder: str) -> list[str]:
    """Return the members that describe weights, one for each model."""
    if kind != b"pt2":
        raise _Refused(f"the format {kind[:20]!r}")
    configs = [name for name in members if name.startswith(folder) and name.endswith(_CONFIG_END)]
    if not configs:
        raise _Refused(f"no {folder}*{_CONFIG_END}")
    return configs


def _config(text: bytes) -> dict[str, Any]:
    try:
        table = parse_json(text, constants=True)
    except MalformedJson as err:
        raise _Refused(str(err)) from err
    if not isinstance(table, dict) or not isinstance(table.get("config"), dict):
        raise _Refused("JSON without a table of weights")
    config: dict[str, Any] = table["config"]
    return config


def _weight(name: str, entry: object, members: Mapping[str, Member], folder: str, path: Location) -> Node:
    """Return the weight that an entry describes."""
    if not isinstance(entry, dict) or not isinstance(entry.get("path_name"), str) or type(entry.get("is_param")) is not bool:
        raise _Refused(f"{name[:80]!r} without path_name and is_param")
    key = entry["path_name"]
    member = members.get(folder + key)
    if member is None or "/" in key:
        raise _Refused(f"{name[:80]!r} in {key[:80]!r}, which is not in the file")
    meta = entry.get("tensor_meta")
    if entry.get("use_pickle") is not False or not isinstance(meta, dict) or meta.get("layout") != _STRIDED:
        return ObjectRef(GlobalRef("torch", "load"), (key,), is_call=True)
    dtype = _DTYPES.get(meta["dtype"]) if type(meta.get("dtype")) is int else None
    if dtype is None:
        raise _Refused(f"{name[:80]!r} of the dtype {brief(meta.get('dtype'), 40)}")
    fields = (key, path, member.offset, member.size_bytes, member.crc32)
    storage = TypedStorage(*fields, plain=StorageRef(*fields), dtype=dtype)
    view = tensor_view(storage, _integer(meta.get("storage_offset")), _integers(meta.get("sizes")), _integers(meta.get("strides")))
    return replace(view, is_parameter=entry["is_param"])


def _integers(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _Refused(f"a shape or strides of {brief(value)}")
    return tuple(_integer(item) for item in value)


def _integer(value: object) -> int:
    number = value.get("as_int") if isinstance(value, dict) and len(value) == 1 else None
    if type(number) is not int:
        raise _Refused(f"{brief(value)} for a fixed number")
    return number
