"""A float32 ONNX file from elsewhere -> the same network in half precision, in another file.

1. The file is made plain: functions inlined, constants as initializers that are no inputs, a name for every node, a dtype for every value.
2. For bfloat16 an opset before 22 is raised to it by ONNX's own converter, and both are compared in ONNX Runtime.
3. It is halved like an export of ours, measured for its range, checked, labelled and written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError
from onnx_ir.passes import common

from exporter.artifacts import EIGHT_BIT, OnnxModel, Provenance, RangeEvidence
from exporter.config import OnnxConfig
from exporter.errors import ArtifactError, ExportError, ModelNotSupported
from exporter.factories import installed_version
from exporter.files import digest_of_file, digest_of_settings, write_bytes
from exporter.onnx_export.external import all_tensors
from exporter.onnx_export.foreign import with_external_data
from exporter.onnx_export.precision.halving import FIRST_BFLOAT16, halve_
from exporter.onnx_export.precision.kinds import require_float32
from exporter.onnx_export.precision.measuring import TOO_LARGE, checked_range
from exporter.onnx_export.precision.shares import HalfValues, half_values, precision_shares, shares_text
from exporter.onnx_export.reading import OnnxFile, describe
from exporter.onnx_export.removing import remove_onnx
from exporter.onnx_export.writing import INLINE_LIMIT_BYTES, weight_bytes, write_onnx

__all__ = ["HalvedOnnx", "halve_onnx", "halved_key"]

_LIBRARIES = ("exporter", "onnx", "onnx-ir")
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
OLDEST_OPSET = 9
_SHOWN = 5


@dataclass(frozen=True, slots=True, eq=False)
class HalvedOnnx:
    """A file in half precision.

    Attributes:
        plain: the given model made plain, in float32: its values are called as in ``written``.
        stored: names of the values and constants that ``written`` stores in half precision.
    """

    written: OnnxModel
    plain: onnx.ModelProto
    stored: frozenset[str]


def halve_onnx(
    given: OnnxFile,
    path: Path,
    config: OnnxConfig,
    *,
    key: str,
    check_raised: Callable[[OnnxModel, OnnxModel], Mapping[str, str]],
    check_range: Callable[[OnnxModel, HalfValues], RangeEvidence] | None = None,
) -> HalvedOnnx:
    """Write ``given`` to ``path`` in ``config.precision``, with float32 inputs, outputs and islands; ``given`` stays as it is.

    Args:
        given: in float32; its opset is 9 or newer.
        path: of the new ``.onnx``.
        config: precision, and what stays in float32.
        key: cache key for the record, from ``halved_key``.
        check_raised: given the file as it is and the one in a newer opset, where bfloat16 needs one; it returns facts for the lineage, or raises.
        check_range: for float16, as in ``export_onnx``.

    Raises:
        ArtifactError: the file is in half precision already (E462) or quantised (E463), its external data cannot be read (E422, E423,
            E471), or a file could not be written (E711).
        ConfigError: a pattern matches nothing (E456).
        ExportError: 8 bits are asked for (E488), the opset is too old (E464), the dtype of a value is not known (E465), nothing would be in half
            precision (E466), or the file cannot be raised to opset 22 (E467); values are beyond float16 (E461);
            the result does not pass ONNX's checks (E403). Nothing was written.
    """
    require_float32(given.model, given.message, config.precision)
    if config.precision in EIGHT_BIT:
        wanted = {
            "file": given.model.path,
            "found": "a float32 file from elsewhere",
            "expected": f"a file in {config.precision}, or float16 or bfloat16",
        }
        help_text = "quantise it where it comes from: files with QuantizeLinear and DequantizeLinear are taken as they are, without --precision"
        raise ExportError("E488", "a file from elsewhere is not brought into 8 bits", facts=wanted, help=help_text)
    if given.model.opset < OLDEST_OPSET:
        old = {"file": given.model.path, "found": f"opset {given.model.opset}", "expected": f"{OLDEST_OPSET} or newer"}
        raise ExportError("E464", "the ONNX file is too old to be converted", facts=old, help="export the network anew, or raise the file's opset")
    message = with_external_data(given.message, given.model.path)
    lineage = dict(given.model.provenance.lineage)
    if config.precision == "bfloat16" and given.model.opset < FIRST_BFLOAT16:
        message, departure = _raised(given.model, message, path, check_raised)
        lineage |= departure
    model = ir.from_proto(message)
    _make_plain_(model, given.model)
    is_large = weight_bytes(model) > INLINE_LIMIT_BYTES
    plain = onnx.ModelProto() if is_large else ir.to_proto(model)
    names = frozenset(model.graph.initializers)
    islands = halve_(model, config.precision, config.float32)
    common.RemoveUnusedNodesPass()(model)
    constants = (value.name or "" for value in model.graph.initializers.values() if value.dtype in _HALVES)
    values = half_values(model, islands)
    stored = values.stored | {name.removesuffix("/float16").removesuffix("/bfloat16") for name in constants} & names
    shares = precision_shares(model)
    if not shares.get(config.precision):
        none = {"file": given.model.path, "found": "every operator stays in float32", "expected": f"operators that compute in {config.precision}"}
        raise ExportError("E466", f"nothing of the network would be in {config.precision}", facts=none, help="take fewer patterns of [onnx] float32")
    ranges = None
    if check_range is not None and config.precision == "float16":
        ranges = TOO_LARGE if is_large else checked_range(plain, path, values, check_range)
    lineage |= {"opset": str(model.opset_imports[""]), "precision": config.precision, "precision_shares": shares_text(shares)}
    versions = _versions()
    provenance = Provenance(
        "onnx_precision", {"onnx": str(given.model.digest)}, {"precision": config.precision, "float32": list(config.float32)}, versions, lineage
    )
    _label_(model, provenance, islands)
    return HalvedOnnx(write_onnx(model, path, provenance, key=key, ranges=ranges), plain, stored)


def halved_key(given: OnnxFile, config: OnnxConfig, feeds: str) -> str:
    """Return the digest of everything that decides what becomes of ``given``.

    Args:
        feeds: digest of what the ranges are measured on.
    """
    folder = given.model.path.parent
    names = {entry.value for tensor in all_tensors(given.message) for entry in tensor.external_data if entry.key == "location"}
    beside = {name: digest_of_file(folder / name).hex for name in sorted(names)}
    settings = {"precision": config.precision, "float32": list(config.float32)}
    parts = {"stage": "onnx_precision", "onnx": given.model.digest.hex, "beside": beside, "settings": settings}
    return digest_of_settings({**parts, "feeds": feeds, "versions": _versions()}).hex


def _versions() -> dict[str, str]:
    return {name: installed_version(name) for name in _LIBRARIES}


def _make_plain_(model: ir.Model, given: OnnxModel) -> None:
    common.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, 4)  # the first in which a constant need not be an input
    common.InlinePass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    for number, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{number}"
    common.NameFixPass()(model)
    common.ShapeInferencePass()(model)
    unknown = [node for node in model.graph if any(value.dtype is None and value.name and _is_read(value) for value in node.outputs)]
    if unknown:
        shown = ", ".join(f"{node.op_type} {node.name}" + (f" of {node.domain}" if node.domain else "") for node in unknown[:_SHOWN])
        more = f", and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        facts = {"file": given.path, "found": shown + more, "expected": "operators whose outputs ONNX's shape inference knows"}
        help_text = "declare the dtypes of these values in the file (value_info), or export the network without operators of other domains"
        raise ExportError("E465", "the dtype of a value is not known, so its readers cannot be given another one", facts=facts, help=help_text)


def _is_read(value: ir.Value) -> bool:
    return value.is_graph_output() or bool(value.uses())


def _raised(
    given: OnnxModel, message: onnx.ModelProto, path: Path, check: Callable[[OnnxModel, OnnxModel], Mapping[str, str]]
) -> tuple[onnx.ModelProto, Mapping[str, str]]:
    """Return the model in opset 22, and how far its outputs are from those of the file."""
    between = path.with_name(f".{path.stem}.opset{FIRST_BFLOAT16}.onnx")
    try:
        raised = onnx.version_converter.convert_version(message, FIRST_BFLOAT16)
        write_bytes(between, raised.SerializeToString())
        facts = check(given, describe(raised, between, digest_of_file(between), Provenance("onnx_precision")))
    except (RuntimeError, ValueError, EncodeError, onnx.checker.ValidationError, ExportError, ArtifactError, ModelNotSupported) as err:
        found = err.facts.get("found", err.problem) if isinstance(err, (ExportError, ArtifactError, ModelNotSupported)) else str(err).strip()
        what = {"file": given.path, "found": f"opset {given.opset}; {found}"[:600], "expected": f"opset {FIRST_BFLOAT16}, or a way to it"}
        raise ExportError(
            "E467",
            f"bfloat16 needs opset {FIRST_BFLOAT16}, and ONNX's converter cannot raise the file to it",
            facts=what,
            help=f"export the network in opset {FIRST_BFLOAT16}, or take float16",
        ) from err
    finally:
        remove_onnx(between)
    return raised, {"raised_from_opset": str(given.opset), **facts}


def _label_(model: ir.Model, provenance: Provenance, islands: Mapping[str, str]) -> None:
    facts = {f"exporter.{name}": text for name, text in provenance.lineage.items()}
    facts |= {f"exporter.version.{name}": text for name, text in provenance.versions.items()}
    facts |= {f"exporter.made_from.{name}": text for name, text in provenance.made_from.items()}
    if islands:
        facts["exporter.float32"] = json.dumps(islands, sort_keys=True)
    model.metadata_props.update(dict(sorted(facts.items())))
