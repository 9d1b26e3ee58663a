"""HDF5 files of Keras as checkpoints: ``.weights.h5``, the older whole-model ``.h5``, and ``.keras``, a zip file around one.

The library that reads HDF5 runs in a process of its own, with limits; it lists where each data set lies, and the bytes are read
from there like any other tensor's. Keras' configuration is read as JSON and never deserialised into objects.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.artifacts import Checkpoint, Node, StorageRef, TensorRef
from exporter.checkpoint.zip_directory import Member, Window
from exporter.errors import CheckpointError, MissingLibrary
from exporter.locations import Location
from exporter.tensors.bounded_json import MalformedJson, parse_json
from exporter.tensors.checksums import crc32
from exporter.tensors.sources import ByteSource
from exporter.tensors.views import MAX_DIMENSIONS

__all__ = ["read_hdf5", "read_keras_zip"]

_CONFIG = "config.json"
_MAX_CONFIG_BYTES = 1 << 26
_TIMEOUT_S = 60
_CHUNK_BYTES = 1 << 20
_DTYPES = {
    **{f"<f{size}": f"float{8 * size}" for size in (2, 4, 8)},
    **{f"<{kind}{size}": f"{name}{8 * size}" for kind, name in (("i", "int"), ("u", "uint")) for size in (2, 4, 8)},
    "|i1": "int8",
    "|u1": "uint8",
    "|b1": "bool",
}


def read_hdf5(file: ByteSource, path: Location) -> Checkpoint:
    """Return the checkpoint in the open HDF5 file.

    Raises:
        CheckpointError: it is damaged or in a form that is not read (E119), or a tensor has an unknown dtype (E113).
        MissingLibrary: h5py is not installed (E812).
    """
    window = Window.of(file)
    weights, attributes = _listed(window, path)
    config = _json(attributes.get("", {}).get("training_config"), path)
    return Checkpoint(path, "HDF5", window.size_bytes, {"weights": weights, "training_config": config})


def read_keras_zip(file: ByteSource, path: Location, members: Mapping[str, Member], member: Member) -> Checkpoint:
    """Return the checkpoint in the open ``.keras`` file, whose members are known, ``member`` with the weights; its checksum is verified.

    Raises:
        CheckpointError: the file of the weights is damaged (E109, E119), or ``config.json`` is (E109, E111, E119).
        MissingLibrary: h5py is not installed (E812).
    """
    _verify(file, path, member)
    config: Node = None
    if _CONFIG in members:
        described = members[_CONFIG]
        if described.size_bytes > _MAX_CONFIG_BYTES:
            facts = {"file": path, "at": _CONFIG, "found": f"{described.size_bytes} bytes", "expected": f"at most {_MAX_CONFIG_BYTES}"}
            raise CheckpointError("E111", "a part of the checkpoint is larger than any trainer writes it", facts=facts)
        _verify(file, path, described)
        config = _json(file.read(described.size_bytes, described.offset).decode("utf-8", "replace"), path)
    weights, _ = _listed(Window(file, member.offset, member.size_bytes), path)
    return Checkpoint(path, "Keras", Window.of(file).size_bytes, {"config": config, "weights": weights})


def _verify(file: ByteSource, path: Location, member: Member) -> None:
    checksum, position, end = 0, member.offset, member.offset + member.size_bytes
    while position < end:
        content = file.read(min(_CHUNK_BYTES, end - position), position)
        if not content:
            break
        checksum = crc32(content, checksum)
        position += len(content)
    if checksum != member.crc32 or position != end:
        facts = {"file": path, "at": member.name, "found": f"CRC-32 {checksum:08x}", "expected": f"{member.crc32:08x}"}
        raise CheckpointError("E109", "the checkpoint is damaged: a checksum is wrong", facts=facts)


def _listed(window: Window, path: Location) -> tuple[dict[str, Node], dict[str, dict[str, Any]]]:
    """Return the tree of groups and tensors, and the attributes by path; a group's text attributes stand in it as ``<name>``."""
    if importlib.util.find_spec("h5py") is None:
        raise MissingLibrary("E812", "reading HDF5 needs h5py, which is not installed", facts={"file": path}, help="pip install exporter[keras]")
    source = Path(__file__).with_name("hdf5_listing.py").read_text(encoding="utf-8")
    command = [sys.executable, "-c", source, str(window.start), str(window.size_bytes)]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # each thread takes address space
    environment = {**os.environ, **one_thread}
    try:
        file = window.source.fileno()
        done = subprocess.run(command, stdin=file, capture_output=True, timeout=_TIMEOUT_S, check=False, cwd=os.sep, env=environment)  # noqa: S603 - our own
    except subprocess.TimeoutExpired as err:
        raise _refused(path, f"nothing listed in {_TIMEOUT_S} s") from err
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise _refused(path, lines[-1][:300] if lines else f"the HDF5 library ended with status {done.returncode}")
    listed = json.loads(done.stdout)
    attributes: dict[str, dict[str, Any]] = listed["attributes"]
    root: dict[str, Node] = {}
    groups: dict[str, dict[str, Node]] = {"": root}
    for place, found in attributes.items():
        if place not in listed["tensors"]:
            _group(groups, place).update({f"<{name}>": value for name, value in found.items() if isinstance(value, str) and name == "name"})
    end = 0
    for place, (dtype, shape, offset, size_bytes) in sorted(listed["tensors"].items(), key=lambda pair: (pair[1][2], pair[1][3])):
        if "dtype" in attributes.get(place, {}) or dtype not in _DTYPES:
            found = attributes.get(place, {}).get("dtype", dtype)
            raise CheckpointError("E113", "a tensor has an unknown dtype", facts={"file": path, "at": place, "found": str(found)[:80]})
        if size_bytes and (offset < end or offset + size_bytes > window.size_bytes or len(shape) > MAX_DIMENSIONS):
            raise _refused(path, f"the data set {place} at bytes {offset} to {offset + size_bytes}, over another or beyond the file")
        end = max(end, offset + size_bytes)
        parent, _, name = place.rpartition("/")
        storage = StorageRef(place, path, window.start + offset, size_bytes)
        _group(groups, parent)[name] = TensorRef(_DTYPES[dtype], tuple(shape), _row_major(tuple(shape)), 0, storage)
    return root, attributes


def _group(groups: dict[str, dict[str, Node]], place: str) -> dict[str, Node]:
    if place not in groups:
        parent, _, name = place.rpartition("/")
        made: dict[str, Node] = {}
        groups[place] = made
        _group(groups, parent)[name] = made
    return groups[place]


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return tuple(strides)


def _json(text: object, path: Location) -> Node:
    if not isinstance(text, str):
        return None
    try:
        parsed: Node = parse_json(text.encode("utf-8", "replace"), constants=True)
    except MalformedJson as err:
        raise _refused(path, f"a configuration that holds {err}") from err
    return parsed


def _refused(path: Location, found: str) -> CheckpointError:
    facts = {"file": path, "found": found, "expected": "data sets that are one run of bytes each, as Keras writes them"}
    return CheckpointError("E119", "the HDF5 file is damaged or in a form that is not read", facts=facts)
