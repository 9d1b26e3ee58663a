"""Where the external data of an ONNX file may lie: beside it or below, in a regular file that is nothing else as well."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import onnx

from exporter.errors import ArtifactError

__all__ = ["all_tensors", "check_tensor"]

_KEYS = {"location", "offset", "length", "checksum"}
_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
_TYPED_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a model: initializers, sparse ones, attributes, in subgraphs and functions too."""
    yield from _in_graph(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _in_node(node)


def check_tensor(tensor: onnx.TensorProto, path: Path) -> None:
    """Refuse a tensor whose numbers are not exactly those that its shape and dtype need, or lie where they must not.

    Args:
        tensor: from the model at ``path``; nothing of its data has been read.
        path: the model.

    Raises:
        ArtifactError: the tensor is malformed (E422), or its external data lie in a place that is not allowed (E423).
    """
    size_bytes = _size_bytes(tensor, path)
    typed = [field for field in _TYPED_FIELDS if len(getattr(tensor, field))]
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        if typed or tensor.raw_data:
            raise _malformed(tensor, path, "it has data in the file and outside")
        _check_external(tensor, path, size_bytes)
        return
    if tensor.external_data:
        raise _malformed(tensor, path, "it names external data but does not use them")
    if tensor.HasField("raw_data"):
        if typed:
            raise _malformed(tensor, path, "it has its data twice")
        if size_bytes is None or len(tensor.raw_data) != size_bytes:
            raise _malformed(tensor, path, f"{len(tensor.raw_data)} bytes of data, its shape needs {size_bytes}")
    elif len(typed) > 1:
        raise _malformed(tensor, path, "it has its data twice")


def _size_bytes(tensor: onnx.TensorProto, path: Path) -> int | None:
    """Return the number of bytes that dims and dtype need; None for strings."""
    if any(size < 0 for size in tensor.dims):
        raise _malformed(tensor, path, f"a negative size: {list(tensor.dims)}")
    num = 1
    for size in tensor.dims:
        num *= size
    try:
        name = onnx.TensorProto.DataType.Name(tensor.data_type)
        if name == "STRING":
            return None
        bits = _BITS.get(name) or onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8
    except (KeyError, ValueError) as err:
        raise _malformed(tensor, path, f"the dtype number {tensor.data_type} is not known") from err
    return (num * bits + 7) // 8


def _check_external(tensor: onnx.TensorProto, path: Path, size_bytes: int | None) -> None:
    entries = [(entry.key, entry.value) for entry in tensor.external_data]
    facts = dict(entries)
    if len(facts) != len(entries) or set(facts) - _KEYS or "location" not in facts:
        raise _malformed(tensor, path, f"external data described by {', '.join(key for key, _ in entries) or 'nothing'}")
    data = _contained(tensor, path, facts["location"])
    try:
        offset, length = (int(facts.get(name, default)) for name, default in (("offset", "0"), ("length", str(size_bytes))))
    except ValueError as err:
        raise _malformed(tensor, path, "offset or length is not a number") from err
    status = _regular_file(tensor, path, data)
    if size_bytes is None or length != size_bytes or offset < 0 or offset + length > status.st_size:
        raise _malformed(
            tensor, path, f"bytes {offset} to {offset + length} of {data.name}, which has {status.st_size}; its shape needs {size_bytes}"
        )


def _contained(tensor: onnx.TensorProto, path: Path, location: str) -> Path:
    steps = PurePosixPath(location).parts
    if not steps or location.startswith(("/", "*")) or "\\" in location or not location.isprintable() or ":" in location or ".." in steps:
        raise _misplaced(tensor, path, location, "a path inside the model's folder")
    here = path.parent
    for step in steps:
        here = here / step
        if here.is_symlink():
            raise _misplaced(tensor, path, location, "no symbolic link")
    if here.exists() and here.samefile(path):
        raise _misplaced(tensor, path, location, "another file than the model")
    return here


def _regular_file(tensor: onnx.TensorProto, path: Path, data: Path) -> os.stat_result:
    try:
        status = os.lstat(data)
    except OSError as err:
        raise _misplaced(tensor, path, data.name, "a file that is there") from err
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise _misplaced(tensor, path, data.name, "a regular file with one name")
    return status


def _malformed(tensor: onnx.TensorProto, path: Path, found: str) -> ArtifactError:
    return ArtifactError("E422", "a tensor of the ONNX file is malformed", facts={"file": path, "tensor": repr(tensor.name[:200]), "found": found})


def _misplaced(tensor: onnx.TensorProto, path: Path, location: str, expected: str) -> ArtifactError:
    facts = {"file": path, "tensor": repr(tensor.name[:200]), "found": repr(location[:200]), "expected": expected}
    return ArtifactError("E423", "external data of the ONNX file lie where they must not", facts=facts)


def _in_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _in_node(node)


def _in_node(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in ([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []) + list(attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            yield from _in_graph(graph)
