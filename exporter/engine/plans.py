"""The sidecar's content, and reading a plan back: its record is verified before a byte of it is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.artifacts import Digest, OnnxModel, Plan, Profile, Provenance, TensorSpec, to_json
from exporter.config import TensorrtConfig
from exporter.engine.structure import structure_digest
from exporter.files import digest_of_file, digest_of_settings
from exporter.records import read_record, record_path
from exporter.trt_worker import PluginLibrary

__all__ = ["load_plan", "plan_content", "plan_from_content"]

_SHORT_LIST = 64


def load_plan(path: Path, *, key: str | None = None) -> Plan | None:
    """Return the plan at ``path`` if plan and sidecar are there, whole, ours and built from ``key``; None means: build again.

    The plan is not given to TensorRT here; the runner verifies it again when it does that.
    """
    content = read_record(path, key=key)
    if not content or content.get("kind") != "plan":
        return None
    return plan_from_content(path, digest_of_file(path), content)


def plan_content(
    model: OnnxModel,
    precision: str,
    config: TensorrtConfig,
    profiles: tuple[Profile, ...],
    plugins: tuple[PluginLibrary, ...],
    provenance: Provenance,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what the sidecar says.

    Args:
        model: what the plan was built from; its inputs and outputs are the plan's.
        precision: that was asked for: ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``fp8``.
        config: settings of the build.
        profiles: as given to the builder.
        plugins: libraries that the engine needs.
        provenance: of the plan.
        facts: what the worker tells of the build.
    """
    return {
        "kind": "plan",
        "precision": precision,
        "tf32": config.tf32,
        "strongly_typed": facts["strongly_typed"],
        "float32_layers": facts["float32_layers"],
        "realised_precision": facts["precision_shares"],
        "tensorrt_version": facts["tensorrt_version"],
        "device": facts["device"],
        "gpu": facts["device"]["name"],
        "inputs": to_json(model.inputs),
        "outputs": to_json(model.outputs),
        "engine_tensors": facts["tensors"],
        "profiles": [to_json(profile.shapes) for profile in profiles],
        "build_seconds": facts["build_seconds"],
        "disabled_tactic_sources": facts["disabled_tactic_sources"],
        "refittable": config.refittable or config.stripped,
        "stripped": config.stripped,
        "plugins": [{"name": library.path.name, "sha256": library.sha256} for library in plugins],
        "version_compatible": config.version_compatible,
        "weight_streaming": config.weight_streaming,
        "reproducible": config.reproducible,
        "debug_tensors": config.debug_tensors,
        "tactics": _tactics(facts["tactics"]),
        "structure": structure_digest(model) if config.refittable or config.stripped else "",
        "timing_cache": facts["timing_cache"],
        "warnings": facts["warnings"],
        "provenance": to_json(provenance),
    }


def _tactics(entries: Mapping[str, str]) -> dict[str, Any]:
    """Return the digest of key -> tactic, and the list itself where it is short; the record of the timing cache has it whole."""
    if not entries:
        return {}
    told: dict[str, Any] = {"sha256": digest_of_settings(dict(entries)).hex, "count": len(entries)}
    return {**told, "entries": dict(entries)} if len(entries) <= _SHORT_LIST else told


def plan_from_content(path: Path, digest: Digest, content: Mapping[str, Any]) -> Plan:
    """Return the artefact that a verified sidecar describes."""
    return Plan(
        path=path,
        sidecar_path=record_path(path),
        digest=digest,
        precision=content["precision"],
        realised_precision=dict(content["realised_precision"]),
        tensorrt_version=content["tensorrt_version"],
        gpu=content["gpu"],
        inputs=tuple(_spec(item) for item in content["inputs"]),
        outputs=tuple(_spec(item) for item in content["outputs"]),
        profiles=tuple(Profile({name: _three(shapes) for name, shapes in item.items()}) for item in content["profiles"]),
        build_seconds=float(content["build_seconds"]),
        refittable=bool(content.get("refittable")),
        stripped=bool(content.get("stripped")),
        version_compatible=bool(content.get("version_compatible")),
        debug_tensors=bool(content.get("debug_tensors")),
        plugins=tuple(plugin["name"] for plugin in content.get("plugins", [])),
        provenance=Provenance(**content["provenance"]),
    )


def _spec(item: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(item["name"], tuple(item["shape"]), item["dtype"])


def _three(shapes: list[list[int]]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    smallest, optimal, largest = (tuple(shape) for shape in shapes)
    return smallest, optimal, largest
