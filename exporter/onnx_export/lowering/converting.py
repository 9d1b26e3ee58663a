"""An ``.onnx`` file of a newer opset -> one of opset 17, with its record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir

from exporter.artifacts import Digest, OnnxModel, Provenance
from exporter.errors import ArtifactError
from exporter.factories import installed_version
from exporter.files import digest_of_file, digest_of_settings
from exporter.onnx_export.keys import LIBRARIES
from exporter.onnx_export.lowering.lowering import lower_
from exporter.onnx_export.lowering.making import OPSET
from exporter.onnx_export.removing import remove_onnx
from exporter.onnx_export.writing import write_onnx

__all__ = ["lower_onnx", "lowered_key"]


def lowered_key(onnx: Digest) -> str:
    """Return the digest of everything that decides what the file with digest ``onnx`` is lowered to."""
    versions = {name: installed_version(name) for name in LIBRARIES if name != "torch"}
    return digest_of_settings({"onnx": str(onnx), "opset": OPSET, "versions": versions}).hex


def lower_onnx(
    model: OnnxModel,
    path: Path,
    *,
    key: str,
    provenance: Provenance | None = None,
    check: Callable[[OnnxModel, OnnxModel], Mapping[str, str]] | None = None,
) -> OnnxModel:
    """Write the function of ``model`` to ``path`` in opset 17 and IR version 8.

    Args:
        model: its file must still have its digest.
        path: of the new ``.onnx``.
        key: cache key for the record, see ``lowered_key``.
        provenance: instead of one that names ``model`` alone.
        check: given ``model`` and the lowered model, before that has its name; it returns facts for the lineage, or raises.

    Raises:
        ArtifactError: the file of ``model`` has changed (E454).
        ExportError: a node has no form in opset 17 (E451), or its form depends on what only a run knows (E452), or the result does
            not pass ONNX's checks (E403). Nothing was written.
    """
    found = digest_of_file(model.path)
    if found.hex != model.digest.hex:
        facts = {"file": model.path, "found": found, "expected": model.digest}
        raise ArtifactError("E454", "the ONNX file is not the one that was exported", facts=facts, help="export it again: exporter export-onnx")
    lowered = ir.load(model.path)
    lower_(lowered)
    if provenance is None:
        provenance = dataclasses.replace(model.provenance, stage="onnx_export", made_from={"onnx": str(model.digest)}, settings={"opset": OPSET})
    provenance = _labelled_(lowered, provenance, {"opset": str(OPSET), "lowered_from_opset": str(model.opset)})
    if check is not None:
        candidate = path.with_name(f".{path.stem}.candidate.onnx")
        try:
            checked = check(model, write_onnx(lowered, candidate, provenance, key=key))
        finally:
            remove_onnx(candidate)
        provenance = _labelled_(lowered, provenance, checked)
    return write_onnx(lowered, path, provenance, key=key, ranges=model.ranges)


def _labelled_(model: ir.Model, provenance: Provenance, facts: Mapping[str, str]) -> Provenance:
    """Write facts into the model's metadata and into its lineage."""
    model.metadata_props.update({f"exporter.{name}": text for name, text in facts.items()})
    return dataclasses.replace(provenance, lineage={**provenance.lineage, **facts})
