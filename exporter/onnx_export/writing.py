"""An ONNX model on disk: whole or not at all, the same bytes for the same model, with a keyed record beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from exporter.artifacts import OnnxModel, Provenance, RangeEvidence, to_json
from exporter.errors import ArtifactError
from exporter.files import atomic_write, digest_of_file, write_bytes
from exporter.onnx_export.checking import check_with_onnx
from exporter.onnx_export.reading import describe, parse
from exporter.records import read_record, record_path, write_record

__all__ = ["INLINE_LIMIT_BYTES", "load_onnx", "weight_bytes", "write_onnx"]

INLINE_LIMIT_BYTES = 2**31 - 2**26
"""Protobuf ends at 2 GiB; beyond this many bytes of weights they go to a file of their own."""
_SMALL_BYTES = 1024
_ALIGNMENT = 4096


def write_onnx(model: ir.Model, path: Path, provenance: Provenance, *, key: str, ranges: RangeEvidence | None = None) -> OnnxModel:
    """Check ``model`` and write it to ``path``, then its record.

    What was measured on samples stands in the record alone: other samples do not change the file, nor the engine that is built from it.

    Raises:
        ExportError: it does not pass ONNX's checks (E403).
        ArtifactError: a file could not be written (E711).
    """
    external: dict[str, str] = {}
    if weight_bytes(model) > INLINE_LIMIT_BYTES:
        data = _write_external_(model, path)
        external[data.name] = digest_of_file(data).hex
    proto = ir.to_proto(model)
    content = proto.SerializeToString(deterministic=True)
    if external:
        _write_checked(path, content)
    else:
        check_with_onnx(proto)
        write_bytes(path, content)
    digest = write_record(path, key=key, content={"external": external, "provenance": to_json(provenance), "ranges": to_json(ranges)})
    return dataclasses.replace(describe(proto, path, digest, provenance), ranges=ranges)


def load_onnx(path: Path, *, key: str | None = None) -> OnnxModel | None:
    """Return our model at ``path``; None where it has to be made again (missing, altered, not ours, or made from something else)."""
    content = read_record(path, key=key)
    if content is None:
        return None
    for name, expected in content["external"].items():
        data = path.with_name(name)
        if not data.is_file() or digest_of_file(data).hex != expected:
            return None
    try:
        model = describe(parse(path), path, digest_of_file(path), Provenance(**content["provenance"]))
        return dataclasses.replace(model, ranges=_ranges(content.get("ranges")))
    except ArtifactError:
        return None


def _ranges(content: dict[str, Any] | None) -> RangeEvidence | None:
    if content is None:
        return None
    lists = {name: tuple(content[name]) for name in ("feeds", "remarks")}
    return RangeEvidence(**{**content, **lists})


def weight_bytes(model: ir.Model) -> int:
    """Return the size of all weights."""
    return sum(math.ceil(value.const_value.nbytes) for value in model.graph.initializers.values() if value.const_value is not None)


def _write_external_(model: ir.Model, path: Path) -> Path:
    """Write the large initializers to ``<stem>.<digest>.data`` beside ``path`` and let the model point there."""
    large = [value for value in model.graph.initializers.values() if value.const_value is not None and value.const_value.nbytes >= _SMALL_BYTES]
    digest = hashlib.sha256()
    for chunk in _laid_out(large):
        digest.update(chunk)
    data = path.with_name(f"{path.stem}.{digest.hexdigest()[:16]}.data")
    with atomic_write(data) as file:
        for chunk in _laid_out(large):
            file.write(chunk)
    offset = 0
    for value in large:
        tensor = value.const_value
        if tensor is None:
            continue
        length = int(tensor.nbytes)
        shape = ir.Shape([int(size) for size in tensor.numpy().shape])
        value.const_value = ir.ExternalTensor(data.name, offset, length, tensor.dtype, shape=shape, name=value.name or "", base_dir=path.parent)
        offset += length + (-length) % _ALIGNMENT
    return data


def _laid_out(values: list[ir.Value]) -> Iterator[bytes]:
    for value in values:
        if value.const_value is not None:
            content = value.const_value.tobytes()
            yield content
            yield bytes((-len(content)) % _ALIGNMENT)


def _write_checked(path: Path, content: bytes) -> None:
    """Write a model with external data: ONNX checks those by path, so a candidate beside ``path`` is checked first."""
    candidate = path.with_name(f".{path.stem}.candidate.onnx")
    write_bytes(candidate, content)
    try:
        check_with_onnx(str(candidate))
    except BaseException:
        candidate.unlink(missing_ok=True)
        raise
    record_path(path).unlink(missing_ok=True)
    write_bytes(path, content)
    candidate.unlink()
    onnx.load(path, load_external_data=False)
