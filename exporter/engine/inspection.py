"""What is inside a plan: its sidecar, and its layers as TensorRT's own inspector tells them, in the worker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.artifacts import Plan
from exporter.config import TensorrtConfig
from exporter.errors import ArtifactError
from exporter.records import verify_record
from exporter.trt_worker import Worker, loading_arguments

__all__ = ["layers_of", "read_sidecar"]


def read_sidecar(path: Path) -> Mapping[str, Any]:
    """Return what the sidecar of the plan at ``path`` says; TensorRT is not asked.

    Raises:
        ArtifactError: plan or sidecar is missing, altered or not ours (E721 to E723), or the record is none of a plan (E521).
    """
    content = verify_record(path)
    if content.get("kind") != "plan":
        facts = {"file": path, "found": f"the record of a {content.get('kind', 'file of another kind')}", "expected": "the sidecar of a plan"}
        raise ArtifactError("E521", "this is no plan", facts=facts)
    return content


def layers_of(plan: Plan, config: TensorrtConfig) -> dict[str, str]:
    """Return layer -> precision, from the engine itself, which is loaded in the worker.

    Raises:
        ArtifactError: TensorRT does not accept the plan (E521), or plan or record are not ours (E721 to E723).
        EnvironmentLacking: E851 to E858.
    """
    arguments = loading_arguments(plan.path, plan.digest.hex, read_sidecar(plan.path), config)
    with Worker(config.python) as worker:
        worker.request("load", arguments, limit_s=config.timeout_s)
        layers: dict[str, str] = worker.request("layers", limit_s=config.timeout_s).value["layers"]
    return layers
