"""What the worker is told when it loads a plan: which bytes, and what they may do, by the plan's verified record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.config import TensorrtConfig
from exporter.trt_worker.plugins import plugins_of_plan

__all__ = ["loading_arguments"]


def loading_arguments(path: Path, sha256: str, content: Mapping[str, Any], config: TensorrtConfig) -> dict[str, Any]:
    """Return the arguments of a request that loads the plan at ``path``.

    Args:
        path: of the plan.
        sha256: of its bytes.
        content: of its record, as ``verify_record`` returned it: code for the host runs only out of a plan whose record is ours.
        config: settings of loading; the plugin libraries that the plan needs have to be among those that it names.

    Raises:
        ArtifactError: they are not (E557), or what is named is no library (E556).
    """
    budget_mib = config.weight_streaming_budget_mib
    loading = {
        "host_code": bool(content.get("version_compatible")),
        "streams_weights": bool(content.get("weight_streaming")),
        "budget_bytes": None if budget_mib is None else budget_mib << 20,
    }
    plugins = [library.to_json() for library in plugins_of_plan(path, content, config)]
    return {"path": str(path.absolute()), "sha256": sha256, "loading": loading, "plugins": plugins}
