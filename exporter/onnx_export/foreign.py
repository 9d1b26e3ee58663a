"""An ONNX file from elsewhere that was folded: its external data read, the result written with where it came from."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx.external_data_helper import load_external_data_for_tensor

from exporter.artifacts import FoldedOnnx, OnnxModel, Provenance
from exporter.config import FoldConfig
from exporter.errors import ArtifactError
from exporter.factories import installed_version
from exporter.files import digest_of_settings
from exporter.onnx_export.external import all_tensors, check_tensor
from exporter.onnx_export.writing import write_onnx

__all__ = ["with_external_data", "write_folded"]

_LIBRARIES = ("exporter", "onnx", "onnx-ir")
_MOST_READINGS = 4
"""How often the bytes of one file may be read: tied weights share them; a bomb shares them a thousand times."""


def with_external_data(message: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Return the message of the model at ``path`` with its external data in it: itself where it has none.

    Raises:
        ArtifactError: the data are malformed (E422) or misplaced (E423), or the same bytes are read again and again (E471).
    """
    if not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in all_tensors(message)):
        return message
    loaded = onnx.ModelProto()
    loaded.CopyFrom(message)
    read: collections.Counter[str] = collections.Counter()
    for tensor in all_tensors(loaded):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        check_tensor(tensor, path)
        location = next(entry.value for entry in tensor.external_data if entry.key == "location")
        size = (path.parent / location).stat().st_size
        load_external_data_for_tensor(tensor, str(path.parent))
        read[location] += len(tensor.raw_data)
        if read[location] > _MOST_READINGS * size:
            facts = {"file": path, "data": location, "found": f"over {_MOST_READINGS} times its {size} bytes are used"}
            raise ArtifactError("E471", "the external data of the ONNX file are used again and again", facts=facts)
        tensor.ClearField("data_location")
        del tensor.external_data[:]
    return loaded


def write_folded(folded: FoldedOnnx, given: OnnxModel, path: Path, config: FoldConfig) -> OnnxModel:
    """Write the fold of ``given`` to ``path``, whole or not at all, with its lineage, and its record beside it.

    Raises:
        ExportError: it does not pass ONNX's checks (E403).
        ArtifactError: its external data cannot be read (E422, E423, E471), or a file could not be written (E711).
    """
    model = ir.from_proto(with_external_data(folded.model, given.path))
    reasons = collections.Counter(refusal.reason.name.lower() for refusal in folded.refusals)
    lineage = {
        **given.provenance.lineage,
        "batch_norms": str(folded.num_batch_norms),
        "folded": str(len(folded.folded)),
        "refused": str(len(folded.refusals)),
    }
    if folded.absorbed:
        lineage["absorbed"] = str(len(folded.absorbed))
    if reasons:
        lineage["refused_for"] = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    versions = {name: installed_version(name) for name in _LIBRARIES}
    provenance = Provenance("onnx_folding", {"onnx": str(given.digest)}, config.to_json(), versions, lineage)
    facts = {f"exporter.{name}": text for name, text in lineage.items()}
    facts |= {f"exporter.version.{name}": text for name, text in versions.items()}
    facts["exporter.made_from.onnx"] = str(given.digest)
    facts["exporter.folds"] = json.dumps({fold.batch_norm: fold.producer for fold in folded.folded}, sort_keys=True)
    facts["exporter.refusals"] = json.dumps({refusal.batch_norm: refusal.reason.name for refusal in folded.refusals}, sort_keys=True)
    model.metadata_props.update(dict(sorted(facts.items())))
    key = digest_of_settings({"stage": "onnx_folding", "onnx": given.digest.hex, "config": config.to_json(), "versions": versions}).hex
    return write_onnx(model, path, provenance, key=key)
