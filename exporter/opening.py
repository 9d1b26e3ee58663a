"""Open an artefact by its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.errors import ArtifactError

__all__ = ["open_artefact"]


def open_artefact(path: Path) -> Any:  # noqa: ANN401 - OnnxModel, Plan or Graph, by suffix
    """Return the artefact at ``path``: a plan or a ``.pt2`` that this machine made, or any ONNX file.

    Raises:
        ArtifactError: the file is missing, of no known kind, or not provably ours.
    """
    if not path.is_file():
        raise ArtifactError("E731", "there is no such artefact", facts={"file": path})
    if path.suffix == ".onnx":
        from exporter.onnx_export import open_onnx

        return open_onnx(path)
    if path.suffix in {".plan", ".engine", ".trt"}:
        from exporter.engine import load_plan
        from exporter.records import verify_record

        verify_record(path)
        return load_plan(path)
    if path.suffix == ".pt2":
        from exporter.graph import load_graph
        from exporter.records import verify_record

        verify_record(path)
        return load_graph(path)
    raise ArtifactError("E732", "this is no artefact that can be run", facts={"file": path, "expected": ".onnx, .pt2 or .plan"})
