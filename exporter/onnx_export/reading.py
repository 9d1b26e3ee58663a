"""Read an ``.onnx`` from anywhere, as data: nothing of it is run, and it is checked before it is believed."""

from __future__ import annotations

import math
import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from exporter.artifacts import EIGHT_BIT, Digest, OnnxModel, Provenance, TensorSpec
from exporter.errors import ArtifactError, ExportError
from exporter.files import digest_of_file
from exporter.onnx_export.checking import check_with_onnx, count_batch_norms
from exporter.onnx_export.external import all_tensors, check_tensor
from exporter.onnx_export.quantising.recognising import eight_bit_precision

__all__ = ["OnnxFile", "describe", "open_onnx", "parse", "read_onnx"]

_LARGEST_BYTES = 2**31 - 1
_PREFIX = "exporter."
_FLOATING = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}


@dataclass(frozen=True, slots=True, eq=False)
class OnnxFile:
    """An ``.onnx`` that has been checked.

    Attributes:
        message: as it is in the file, without external data.
    """

    model: OnnxModel
    message: onnx.ModelProto


def open_onnx(path: Path) -> OnnxModel:
    """Return the model at ``path``, which may come from anywhere.

    Raises:
        ArtifactError: as ``read_onnx``.
    """
    return read_onnx(path).model


def read_onnx(path: Path) -> OnnxFile:
    """Return the model at ``path``, which may come from anywhere, with its message.

    Raises:
        ArtifactError: no regular file, or no ONNX (E421), a malformed tensor (E422), external data outside the folder (E423), a
            malformed graph or an opset that is not known (E424).
    """
    model = parse(path)
    has_external = False
    for tensor in all_tensors(model):
        check_tensor(tensor, path)
        has_external = has_external or tensor.data_location == onnx.TensorProto.EXTERNAL
    _check_structure(model, path)
    try:
        check_with_onnx(str(path) if has_external else model)
    except ExportError as err:
        raise ArtifactError("E424", "the ONNX file does not pass ONNX's own checks", facts={"file": path, "found": err.facts["found"]}) from err
    lineage = {entry.key.removeprefix(_PREFIX): entry.value for entry in model.metadata_props if entry.key.startswith(_PREFIX)}
    producer = {"producer": f"{model.producer_name} {model.producer_version}".strip()}
    return OnnxFile(describe(model, path, digest_of_file(path), Provenance("onnx_export", {}, producer, {}, lineage)), model)


def parse(path: Path) -> onnx.ModelProto:
    """Return the message in the file, without external data.

    Raises:
        ArtifactError: there is no regular file, it is too large, or it is no ONNX model (E421).
    """
    expected = "an ONNX model"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= _LARGEST_BYTES:
                found = "no regular file" if not stat.S_ISREG(status.st_mode) else f"{status.st_size} bytes"
                raise ArtifactError("E421", "this is no ONNX file", facts={"file": path, "found": found, "expected": expected})
            content = file.read(status.st_size)
    except OSError as err:
        raise ArtifactError("E421", "the ONNX file cannot be read", facts={"file": path, "found": err.strerror or err, "expected": expected}) from err
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as err:
        raise ArtifactError("E421", "this is no ONNX file", facts={"file": path, "found": err, "expected": expected}) from err
    if not model.HasField("graph") or not model.opset_import:
        raise ArtifactError("E421", "this is no ONNX file", facts={"file": path, "found": "a message without graph or opset", "expected": expected})
    return model


def describe(model: onnx.ModelProto, path: Path, digest: Digest, provenance: Provenance) -> OnnxModel:
    """Return the facts of a parsed model."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return OnnxModel(
        path=path,
        digest=digest,
        opset=next((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), 0),
        ir_version=model.ir_version,
        inputs=_specs((value for value in model.graph.input if value.name not in constants), path),
        outputs=_specs(model.graph.output, path),
        num_nodes=len(model.graph.node),
        num_batch_norms=count_batch_norms(model),
        metadata={entry.key: entry.value for entry in model.metadata_props},
        provenance=provenance,
        precision=_precision_of(model),
    )


def _precision_of(model: onnx.ModelProto) -> str:
    """Return the declared precision, else that of pairs in 8 bits, else the floating dtype that most weights have."""
    declared = next((entry.value for entry in model.metadata_props if entry.key == f"{_PREFIX}precision"), "")
    if declared in {*_FLOATING.values(), *EIGHT_BIT}:
        return declared
    if quantised := eight_bit_precision(model):
        return quantised
    counts: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        if tensor.data_type in _FLOATING:
            counts[_FLOATING[tensor.data_type]] += math.prod(tensor.dims)
    return counts.most_common(1)[0][0] if counts else "float32"


def _specs(values: Iterable[onnx.ValueInfoProto], path: Path) -> tuple[TensorSpec, ...]:
    specs = []
    for value in values:
        if not value.type.HasField("tensor_type"):
            found = value.type.WhichOneof("value") or "no type"
            raise ArtifactError(
                "E424", "an input or output of the ONNX file is not a tensor", facts={"file": path, "at": repr(value.name), "found": found}
            )
        kind = value.type.tensor_type
        try:
            dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        except (KeyError, ValueError) as err:
            raise ArtifactError(
                "E424", "an input or output has a dtype that is not known", facts={"file": path, "at": repr(value.name), "found": kind.elem_type}
            ) from err
        shape = tuple(
            dim.dim_value if dim.WhichOneof("value") == "dim_value" else (dim.dim_param or f"{value.name}_{axis}")
            for axis, dim in enumerate(kind.shape.dim)
        )
        specs.append(TensorSpec(value.name, shape, dtype))
    return tuple(specs)


def _check_structure(model: onnx.ModelProto, path: Path) -> None:
    newest = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in {"", "ai.onnx"} and not 1 <= entry.version <= newest:
            raise _malformed(path, f"opset {entry.version}", f"1 to {newest}")
    names = [tensor.name for tensor in model.graph.initializer]
    if len(set(names)) != len(names):
        raise _malformed(path, "two initializers of the same name", "different names")
    calls = {(function.domain, function.name): {(node.domain, node.op_type) for node in function.node} for function in model.functions}
    if len(calls) != len(model.functions):
        raise _malformed(path, "two functions of the same name", "different names")
    _refuse_cycles(calls, path)


def _refuse_cycles(calls: dict[tuple[str, str], set[tuple[str, str]]], path: Path) -> None:
    """Remove functions that call no other function, again and again; what is left calls itself in the end."""
    left = {name: {callee for callee in callees if callee in calls} for name, callees in calls.items()}
    while left:
        leaves = [name for name, callees in left.items() if not callees & set(left)]
        if not leaves:
            raise _malformed(path, f"functions that call themselves: {', '.join(sorted(name for _, name in left))}"[:300], "functions without cycles")
        for name in leaves:
            del left[name]


def _malformed(path: Path, found: str, expected: str) -> ArtifactError:
    return ArtifactError("E424", "the ONNX file is malformed", facts={"file": path, "found": found, "expected": expected})
