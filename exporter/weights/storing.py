"""The record beside baked weights: written with them, and read to find out whether they are up to date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter import __version__
from exporter.artifacts import (
    BakeSummary,
    BatchNormStatistics,
    Digest,
    EmaCandidate,
    LayerChange,
    Provenance,
    Recalibration,
    Selection,
    TensorDrift,
    TensorSpec,
    Weights,
    to_json,
)
from exporter.files import digest_of_settings
from exporter.records import read_record, recorded_digest, write_record
from exporter.tensors.contents import digest_of_contents
from exporter.weights.layouts import registered_versions

if TYPE_CHECKING:
    from exporter.config import BakeConfig

__all__ = ["load_weights", "metadata_of", "store_record", "weights_key"]

_STAGE = "weights"


def weights_key(
    checkpoint_digest: Digest, config: BakeConfig, *, parameter_order: Sequence[TensorSpec] | None = None, selection: Selection | None = None
) -> str:
    """Return the digest of everything that decides the baked bytes.

    That is the checkpoint, the settings, this version, the layouts that other distributions register, the order of the model's
    parameters where a list without names needs it, and the values that the weights were chosen by.
    """
    parts = {"stage": _STAGE, "checkpoint": checkpoint_digest.hex, "config": config.to_json(), "exporter": __version__}
    if parameter_order is not None:
        parts["parameter order"] = to_json(list(parameter_order))
    if selection is not None:
        parts["selection"] = to_json(selection)
    if registered := registered_versions():
        parts["layouts"] = list(registered)
    return digest_of_settings(parts).hex


def metadata_of(lineage: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata of a safetensors file with this lineage."""
    return {"format": "pt"} | {f"exporter.{key}": value for key, value in lineage.items()}


def store_record(
    path: Path, key: str, specs: Sequence[TensorSpec], summary: BakeSummary, provenance: Provenance, *, digest: Digest | None = None
) -> Weights:
    """Write the record of the baked weights at ``path`` and return the artefact; ``digest`` where it was taken while writing."""
    content = {"tensors": to_json(list(specs)), "summary": to_json(summary), "provenance": to_json(provenance)}
    digest = write_record(path, key=key, content=content, digest=digest)
    return Weights(path, digest, tuple(specs), summary, provenance)


def load_weights(path: Path, *, key: str | None = None) -> Weights | None:
    """Return the baked weights at ``path``, None where they have to be made again.

    They are returned only if the record beside them was written on this machine, fits their bytes, and was made from ``key``
    (any key where it is None).
    """
    content = read_record(path, key=key, measure=digest_of_contents)
    if content is None or set(content) != {"tensors", "summary", "provenance"}:
        return None
    try:
        provenance, summary = Provenance(**content["provenance"]), _summary(content["summary"])
        tensors = tuple(TensorSpec(item["name"], tuple(item["shape"]), item["dtype"]) for item in content["tensors"])
    except (KeyError, TypeError, ValueError, AttributeError):  # ours, and with other fields: another release wrote it
        return None
    return Weights(path, recorded_digest(path), tensors, summary, provenance) if provenance.stage == _STAGE else None


def _summary(content: Mapping[str, Any]) -> BakeSummary:
    values = {field.name: content[field.name] for field in fields(BakeSummary)}
    drift = tuple(TensorDrift(item["name"], float(item["relative"]), float(item["max_abs"])) for item in values["drift"])
    total, candidate = values["drift_total"], values["candidate"]
    if candidate is not None:
        candidate = EmaCandidate(**{**candidate, "dtypes": tuple(candidate["dtypes"])})
    selection = values["selection"]
    if selection is not None:
        selection = Selection(**{**selection, "values": {name: float(value) for name, value in selection["values"].items()}})
    values |= {"remarks": tuple(values["remarks"]), "selection": selection}
    statistics = _batch_norm(values["batch_norm"]) if values["batch_norm"] is not None else None
    total = None if total is None else float(total)
    return BakeSummary(**{**values, "drift": drift, "drift_total": total, "candidate": candidate, "batch_norm": statistics})


def _batch_norm(content: Mapping[str, Any]) -> BatchNormStatistics:
    found = content["recalibration"]
    if found is None:
        return BatchNormStatistics(**content)
    changes = [{**item, **{key: float(item[key]) for key in ("mean_shift", "variance_change")}} for item in found["layers"]]
    result = Recalibration(
        **{
            **found,
            "layers": tuple(LayerChange(**item) for item in changes),
            "not_reached": tuple(found["not_reached"]),
            "output_drift": {name: float(value) for name, value in found["output_drift"].items()},
            **{key: None if found[key] is None else float(found[key]) for key in ("metric_before", "metric_after")},
        }
    )
    return BatchNormStatistics(**{**content, "recalibration": result})
