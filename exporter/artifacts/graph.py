"""Stage 3: a traced model before and after the fold."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from exporter.artifacts.provenance import Digest, Provenance
from exporter.artifacts.sketch import Sketch
from exporter.artifacts.specs import TensorSpec

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram

__all__ = ["REMEDIES", "Cost", "Folded", "FoldedOnnx", "Graph", "Refusal", "RefusalReason", "Steep"]


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


REMEDIES: Final[Mapping[RefusalReason, str]] = {
    RefusalReason.NOT_LINEAR: "nothing for this network; when it is trained anew, put the BatchNorm directly behind a convolution",
    RefusalReason.OTHER_CONSUMER: "--fold-level aggressive copies a convolution where that is all; or let the other read what the BatchNorm makes",
    RefusalReason.GRAPH_OUTPUT: "if nobody needs that output, let forward not return it",
    RefusalReason.BLOCKED: "when it is trained anew, put the BatchNorm in front of that operator, directly behind the convolution",
    RefusalReason.PADDED: "--fold-level aggressive adds the border's shift back, at a cost; or train anew with copied values for padding",
    RefusalReason.TRAINING: "put the module in eval mode: look for a train() that is overridden, and for training=True in a forward",
    RefusalReason.NO_RUNNING_STATISTICS: "nothing: it normalises with each batch by design; track_running_stats=True makes it a fixed map",
    RefusalReason.WRONG_AXIS: "if the BatchNorm was meant for the features, transpose so that they stand on axis 1 in front of it",
    RefusalReason.NOT_CONSTANT: "keep it in a parameter or buffer that forward neither computes from the input nor writes to",
    RefusalReason.OUT_OF_RANGE: "fold with weights in float32, and cast what comes out",
    RefusalReason.ISOLATED: "take the pattern out of fold.keep (--keep), or set fold.enabled",
}
"""What its user can do about each."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a graph does in one run, by its shapes; a dynamic batch counts as one.

    Attributes:
        flops: additions and multiplications.
        bytes: read and written by its operators, each on its own.
    """

    flops: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Return both together."""
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class Steep:
    """Channels of a BatchNorm whose running variance is next to nothing, so that they multiply what they are folded into.

    Attributes:
        channel: the one with the largest factor.
        variance: its running variance.
        factor: its ``|gamma / sqrt(var + eps)|``.
        typical: the median of that over all channels.
        num: how many such channels there are.
    """

    channel: int
    variance: float
    factor: float
    typical: float
    num: int


@dataclass(frozen=True, slots=True)
class Folded:
    """A BatchNorm that is gone: ``batch_norm`` was folded into ``producer``.

    Attributes:
        pattern: ``conv2d+bn``, ``linear+bn``, ``bn+linear``, ...
        max_scale: largest ``|gamma / sqrt(var + eps)|``.
        direction: ``back`` into what makes its data, ``ahead`` into what reads it, ``beside`` into another branch of a sum, or
            ``constant``: it was computed ahead.
        changed: modules whose outputs have no counterpart in the unfolded network, since they stand between the two.
        steep: channels that a tiny running variance blew up; None where there are none.
    """

    batch_norm: str
    producer: str
    pattern: str
    num_channels: int
    max_scale: float
    direction: Literal["back", "ahead", "beside", "constant"] = "back"
    changed: tuple[str, ...] = ()
    steep: Steep | None = None


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
        sketch: the unfused network for people; what ``--explain`` and the report draw.
        cost_before, cost_after: FLOPs and bytes of the graph, by its shapes.
        absorbed: products and sums with constants that are no BatchNorm, stood alone and are gone: layer scales, factors, offsets.
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
    sketch: Sketch = field(default_factory=Sketch)
    cost_before: Cost = field(default_factory=Cost)
    cost_after: Cost = field(default_factory=Cost)
    absorbed: tuple[Folded, ...] = ()
    path: Path | None = None
    digest: Digest | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FoldedOnnx:
    """An ONNX model after folding.

    Attributes:
        model: the folded model; its external data lie where those of the given model do.
        num_batch_norms: before folding.
        ops_before, ops_after: nodes of the outermost graph, functions inlined, without constants.
        sketch: the model before folding, for people.
        cost_before, cost_after: FLOPs and bytes of the graph, by its shapes.
        absorbed: products and sums with constants that are no BatchNorm, stood alone and are gone: layer scales, factors, offsets.
    """

    model: onnx.ModelProto
    folded: tuple[Folded, ...]
    refusals: tuple[Refusal, ...]
    num_batch_norms: int
    ops_before: int
    ops_after: int
    sketch: Sketch = field(default_factory=Sketch)
    cost_before: Cost = field(default_factory=Cost)
    cost_after: Cost = field(default_factory=Cost)
    absorbed: tuple[Folded, ...] = ()
