"""``exporter inspect`` of a TensorRT plan: what its sidecar says, and on request its layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.cli.screen import Screen

__all__ = ["PLAN_SUFFIXES", "show_plan"]

PLAN_SUFFIXES = frozenset({".engine", ".plan", ".trt"})
_SHOWN_WARNINGS = 5


def show_plan(screen: Screen, path: Path, *, layers: bool) -> None:
    """Print what is known of the plan at ``path``; with ``layers``, load it in the worker and list them."""
    from exporter.cli.options import config_with
    from exporter.engine import layers_of, load_plan, read_sidecar
    from exporter.errors import ArtifactError, printable

    content = read_sidecar(path)
    plan = load_plan(path)
    if plan is None:
        raise ArtifactError("E723", "an artefact differs from its record", facts={"file": path})
    found = layers_of(plan, config_with(None).tensorrt) if layers else None
    lines = [*_lines(path, plan.digest.hex, content), *(f"layer    {precision:<7}  {name}" for name, precision in (found or {}).items())]
    screen.show([printable(line) for line in lines])
    screen.result({"path": str(path), "sha256": plan.digest.hex, **content, **({} if found is None else {"layers": found})})


def _lines(path: Path, sha256: str, content: Mapping[str, Any]) -> list[str]:
    from exporter.cli.tables import size_text

    provenance, device = content["provenance"], content["device"]
    settings, warnings = provenance["settings"], content["warnings"]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in content["realised_precision"].items()) or "not told by the inspector"
    typed = "strongly typed" if content["strongly_typed"] else "weakly typed"
    size = size_text(path.stat().st_size)
    lines = [
        f"{path}   TensorRT {content['tensorrt_version']} · {size} · sha256 {sha256}",
        f"gpu      {device['name']}, compute capability {device['compute_capability']}, driver {device['driver_version'] or 'not told'}",
        *(f"from     {what} {digest}" for what, digest in provenance["made_from"].items()),
        *(f"lineage  {what}: {fact}" for what, fact in provenance["lineage"].items()),
        f"typed    {content['precision']}, TF32 {'on' if content['tf32'] else 'off'}, {typed}; layers: {shares}",
    ]
    lines += [
        f"{side:<8} {spec['name']}  {spec['dtype']} [{', '.join(map(str, spec['shape']))}]"
        for side in ("input", "output")
        for spec in content[f"{side}s"]
    ]
    for index, profile in enumerate(content["profiles"]):
        shapes = "; ".join(f"{name} " + " .. ".join("x".join(map(str, shape)) for shape in three) for name, three in profile.items())
        lines.append(f"profile  {index}: {shapes}")
    lines.append(
        f"build    {content['build_seconds']:.1f} s, optimization level {settings['optimization_level']}, {settings['workspace_mib']} MiB workspace, "
        f"timing cache: {content.get('timing_cache', 'none')}{_abilities(content)}"
    )
    held = content.get("float32_layers")
    lines += [f"float32  layers held: {held['layers']}; nodes without a layer: {', '.join(held['not_found']) or 'none'}"] if held else []
    tactics = content.get("tactics")
    lines += [f"tactics  {tactics['count']}, {content['timing_cache']}, sha256 {tactics['sha256']}"] if tactics else []
    lines += [f"plugins  {plugin['name']}, sha256 {plugin['sha256']}" for plugin in content.get("plugins", [])]
    lines += [f"warning  {text}" for text in warnings[:_SHOWN_WARNINGS]]
    if len(warnings) > _SHOWN_WARNINGS:
        lines.append(f"         and {len(warnings) - _SHOWN_WARNINGS} more")
    return lines


def _abilities(content: Mapping[str, Any]) -> str:
    """Return what the plan can do that not every plan can, with a comma before each."""
    names = {
        "refittable": "refittable",
        "version_compatible": "version-compatible",
        "weight_streaming": "weights streamed",
        "debug_tensors": "debug tensors",
    }
    return "".join(f", {name}" for key, name in names.items() if content.get(key))
