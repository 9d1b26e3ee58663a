"""The frozen values that flow from stage to stage.

    Checkpoint -> Weights -> Graph -> OnnxModel -> Plan -> Verdict -> Report

Every artefact knows its provenance: what it was made from (path and digest of the parent), with which settings and which
versions. Nothing here reads a file, and nothing here imports a heavy library; a module is imported when one of its names is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporter.artifacts.checkpoint import Checkpoint, GlobalRef, Node, ObjectRef, ShardRef, StorageRef, TensorRef, brief, walk
    from exporter.artifacts.documents import to_json
    from exporter.artifacts.graph import REMEDIES, Cost, Folded, FoldedOnnx, Graph, Refusal, RefusalReason, Steep
    from exporter.artifacts.models import EIGHT_BIT, OnnxModel, Plan, Profile
    from exporter.artifacts.provenance import Digest, Provenance
    from exporter.artifacts.report import Report, StageRecord
    from exporter.artifacts.sketch import Explanation, Neighbour, Sketch, SketchNode
    from exporter.artifacts.specs import TensorSpec
    from exporter.artifacts.verdicts import LatencyEvidence, MetricEvidence, Outcome, OutputParity, ParityEvidence, RangeEvidence, Verdict, worst
    from exporter.artifacts.weights import (
        BATCH_NORM_SOURCES,
        BakeSummary,
        BatchNormStatistics,
        EmaCandidate,
        LayerChange,
        LayoutReading,
        OptimizerSlot,
        Recalibration,
        Selection,
        TensorDrift,
        Weights,
    )

__all__ = [
    "BATCH_NORM_SOURCES",
    "EIGHT_BIT",
    "REMEDIES",
    "BakeSummary",
    "BatchNormStatistics",
    "Checkpoint",
    "Cost",
    "Digest",
    "EmaCandidate",
    "Explanation",
    "Folded",
    "FoldedOnnx",
    "GlobalRef",
    "Graph",
    "LatencyEvidence",
    "LayerChange",
    "LayoutReading",
    "MetricEvidence",
    "Neighbour",
    "Node",
    "ObjectRef",
    "OnnxModel",
    "OptimizerSlot",
    "Outcome",
    "OutputParity",
    "ParityEvidence",
    "Plan",
    "Profile",
    "Provenance",
    "RangeEvidence",
    "Recalibration",
    "Refusal",
    "RefusalReason",
    "Report",
    "Selection",
    "ShardRef",
    "Sketch",
    "SketchNode",
    "StageRecord",
    "Steep",
    "StorageRef",
    "TensorDrift",
    "TensorRef",
    "TensorSpec",
    "Verdict",
    "Weights",
    "brief",
    "to_json",
    "walk",
    "worst",
]

_HOMES = {
    **dict.fromkeys(("Digest", "Provenance"), "provenance"),
    **dict.fromkeys(("Checkpoint", "GlobalRef", "Node", "ObjectRef", "ShardRef", "StorageRef", "TensorRef", "brief", "walk"), "checkpoint"),
    **dict.fromkeys(
        (
            "BATCH_NORM_SOURCES",
            "BakeSummary",
            "BatchNormStatistics",
            "EmaCandidate",
            "LayerChange",
            "LayoutReading",
            "OptimizerSlot",
            "Recalibration",
            "Selection",
            "TensorDrift",
            "Weights",
        ),
        "weights",
    ),
    **dict.fromkeys(("TensorSpec",), "specs"),
    **dict.fromkeys(("REMEDIES", "Cost", "Folded", "FoldedOnnx", "Graph", "Refusal", "RefusalReason", "Steep"), "graph"),
    **dict.fromkeys(("EIGHT_BIT", "OnnxModel", "Plan", "Profile"), "models"),
    **dict.fromkeys(
        ("LatencyEvidence", "MetricEvidence", "Outcome", "OutputParity", "ParityEvidence", "RangeEvidence", "Verdict", "worst"), "verdicts"
    ),
    **dict.fromkeys(("Report", "StageRecord"), "report"),
    **dict.fromkeys(("Explanation", "Neighbour", "Sketch", "SketchNode"), "sketch"),
    **dict.fromkeys(("to_json",), "documents"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the home defines
    if name not in _HOMES:
        raise AttributeError(f"module 'exporter.artifacts' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"exporter.artifacts.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
