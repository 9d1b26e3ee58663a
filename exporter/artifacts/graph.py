"""Stage 3: a traced model before and after the fold."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from exporter.artifacts.provenance import Digest, Provenance
from exporter.artifacts.specs import TensorSpec

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["Folded", "Graph", "Refusal", "RefusalReason"]


class RefusalReason(enum.Enum):
    """Why a BatchNorm was kept; a closed list."""

    NOT_LINEAR = "not preceded by a linear operator"
    OTHER_CONSUMER = "the producer's output has another consumer"
    GRAPH_OUTPUT = "the producer's output is an output of the graph"
    BLOCKED = "an operator between them does not pass the BatchNorm's map on"
    PADDED = "the consumer pads with zeros, which the BatchNorm would have shifted"
    TRAINING = "the BatchNorm is in training mode"
    NO_RUNNING_STATISTICS = "the BatchNorm has no running statistics"
    WRONG_AXIS = "the BatchNorm acts on another axis than the producer's output channels"
    NOT_CONSTANT = "a weight or statistic is computed, not constant"
    OUT_OF_RANGE = "a folded number does not fit the weight's dtype"
    ISOLATED = "excluded by the configuration"


@dataclass(frozen=True, slots=True)
class Folded:
    """A BatchNorm that is gone: ``batch_norm`` was folded into ``producer``.

    Attributes:
        pattern: ``conv2d+bn``, ``linear+bn``, ``bn+linear``, ...
        max_scale: largest ``|gamma / sqrt(var + eps)|``.
        direction: ``back`` into what makes its data, ``ahead`` into what reads it, ``beside`` into another branch of a sum, or
            ``constant``: it was computed ahead.
        changed: modules whose outputs have no counterpart in the unfolded network, since they stand between the two.
    """

    batch_norm: str
    producer: str
    pattern: str
    num_channels: int
    max_scale: float
    direction: Literal["back", "ahead", "beside", "constant"] = "back"
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A BatchNorm deliberately kept."""

    batch_norm: str
    reason: RefusalReason
    culprits: tuple[str, ...] = ()
    detail: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A traced model with its weights, before and after folding.

    Attributes:
        unfused: the exported program before any folding, in the dtype of the weights.
        folded_program: the same after folding.
        path, digest: of the stored folded program; None where nothing was written.
        num_batch_norms: before folding.
        ops_before, ops_after: calls in the graph.
    """

    unfused: ExportedProgram
    folded_program: ExportedProgram
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    folded: tuple[Folded, ...]
    refusals: tuple[Refusal, ...]
    num_batch_norms: int
    ops_before: int
    ops_after: int
    provenance: Provenance
    path: Path | None = None
    digest: Digest | None = None
