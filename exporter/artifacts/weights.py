"""Stage 2: what a checkpoint holds, and one copy of the weights taken out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from exporter.artifacts.provenance import Digest, Provenance
from exporter.artifacts.specs import TensorSpec

__all__ = [
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
]


@dataclass(frozen=True, slots=True)
class EmaCandidate:
    """One set of averaged weights that a layout recognised in a checkpoint.

    Attributes:
        name: what the user types after ``--ema``, normally the key: ``model_ema``.
        at: key path in the tree.
        state: ``settled``, ``warming``, ``cold`` or ``unknown``; see ``docs/ema.md``.
        initial_share: share of the initial weights still in the average (0 to 1), None where it cannot be known.
        window: mean age of the weights in the average, in updates, the newest counted as 1; None where it cannot be known.
        batch_norm: a source of ``BatchNormStatistics``, empty where the weights have no BatchNorm statistics.
    """

    name: str
    at: str
    num_tensors: int
    dtypes: tuple[str, ...]
    size_bytes: int
    updates: int | None = None
    decay: float | None = None
    schedule: str = "unknown"
    initial_share: float | None = None
    state: Literal["settled", "warming", "cold", "unknown"] = "unknown"
    remark: str = ""
    window: float | None = None
    batch_norm: str = ""


@dataclass(frozen=True, slots=True)
class OptimizerSlot:
    """Tensors that belong to an optimizer: never weights."""

    at: str
    slot: str
    """``momentum_buffer``, ``exp_avg``, ``exp_avg_sq``, ..."""
    num_tensors: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LayoutReading:
    """What a layout says of a checkpoint: which copies of the weights stand where."""

    layout: str
    """``timm``, ``torch-averaged-model``, ``torchvision``, ``dict``, ``ultralytics``, or ``unknown``."""
    candidates: tuple[EmaCandidate, ...]
    raw_at: str | None
    raw_num_tensors: int = 0
    raw_size_bytes: int = 0
    raw_dtypes: tuple[str, ...] = ()
    raw_remark: str = ""
    optimizer_slots: tuple[OptimizerSlot, ...] = ()
    looked_at: tuple[str, ...] = ()
    """The keys that were looked for, for the message where nothing was found."""
    found: tuple[str, ...] = ()
    """The keys at the top of the file."""
    model: str = ""
    """A factory that the trainer wrote down (``timm:resnet50``), empty where there is none."""
    model_arguments: Mapping[str, object] = field(default_factory=dict)
    """Arguments of that factory, as the trainer wrote them or as the shapes of the weights say: numbers, text and lists of them."""
    remarks: tuple[str, ...] = ()
    needs_parameter_order: bool = False
    """Whether an average is a list without names, which only the model's own order can name."""


@dataclass(frozen=True, slots=True)
class TensorDrift:
    """Distance of one averaged tensor from its raw twin: ``||ema - raw|| / ||raw||``."""

    name: str
    relative: float
    max_abs: float


@dataclass(frozen=True, slots=True)
class LayerChange:
    """How far the statistics of one BatchNorm layer moved when they were estimated anew.

    Attributes:
        values_per_channel: how many values the estimate of one channel rests on.
        mean_shift: ``||new means - old means||`` in units of ``||new standard deviations||``.
        variance_change: ``||new variances - old variances|| / ||new variances||``.
    """

    layer: str
    num_channels: int
    values_per_channel: int
    mean_shift: float
    variance_change: float


@dataclass(frozen=True, slots=True)
class Recalibration:
    """BatchNorm statistics estimated anew on samples, and what that changed.

    Attributes:
        samples_sha256: of the file with the samples.
        batch: samples of one batch at most.
        layers: in the order of the model.
        not_reached: layers that no sample came through; they keep their statistics.
        output_drift: output -> ``||after - before|| / ||before||``, over ``num_compared`` samples.
        metric: empty where none is configured and there are no labels; else its value before and after.
    """

    num_samples: int
    samples_sha256: str
    batch: int
    layers: tuple[LayerChange, ...]
    not_reached: tuple[str, ...]
    num_compared: int
    output_drift: Mapping[str, float]
    metric: str = ""
    metric_before: float | None = None
    metric_after: float | None = None

    @property
    def values_per_channel(self) -> int:
        """Return the number of values per channel of the layer that has the fewest."""
        return min((change.values_per_channel for change in self.layers), default=0)


@dataclass(frozen=True, slots=True)
class BatchNormStatistics:
    """Where the running statistics of the BatchNorm layers come from, and whether they fit the weights.

    Attributes:
        source: ``averaged`` with the weights; ``copied``: in the average, and equal to the raw ones; ``stored``: in the average,
            the file cannot tell whether averaged, copied or estimated anew; ``raw``: from the raw weights, the average has none;
            ``stale``: in the average, never updated since it was made; ``own``: raw statistics with raw weights; ``recalibrated``.
            The worst of them where layers differ.
        how: what was asked for: ``auto`` is the layout's rule.
        num_layers: layers with statistics.
        warning: why they may not fit, and the option that helps; empty where nothing is known against them.
    """

    source: Literal["averaged", "copied", "stored", "raw", "stale", "own", "recalibrated"]
    how: Literal["auto", "raw", "ema", "recalibrate"]
    num_layers: int
    warning: str = ""
    recalibration: Recalibration | None = None


BATCH_NORM_SOURCES: Mapping[str, str] = {
    "averaged": "averaged with the weights",
    "copied": "in the average, equal to those of the raw weights",
    "stored": "in the average: averaged, copied or estimated anew, which the file does not say",
    "raw": "those of the raw weights",
    "stale": "in the average, not updated since it was made",
    "own": "those of the weights themselves",
    "recalibrated": "estimated anew on the samples",
}
"""Source of ``BatchNormStatistics`` -> in words."""


@dataclass(frozen=True, slots=True)
class Selection:
    """How the weights were chosen by a metric, the larger the better: the values of all copies, and why some have none."""

    metric: str
    num_samples: int
    values: Mapping[str, float]
    chosen: str
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BakeSummary:
    """What baking did, for the screen and the report."""

    layout: str
    choice: str
    """``ema:<name>`` or ``raw``."""
    num_averaged: int
    num_copied: int
    """Buffers and counters taken from the raw weights by the rule of the layout."""
    size_bytes: int
    cast: str
    """``fp16 -> fp16``: source and target dtypes of the floating tensors."""
    left_behind: Mapping[str, int]
    """What was not written -> bytes: ``{"optimizer": 12600000, "raw weights": ...}``."""
    drift: tuple[TensorDrift, ...]
    """Per averaged tensor; empty where the file has no raw weights."""
    drift_total: float | None
    """Over all averaged tensors together; None where it cannot be known."""
    candidate: EmaCandidate | None = None
    remarks: tuple[str, ...] = ()
    """What a reader should know of the weights."""
    selection: Selection | None = None
    batch_norm: BatchNormStatistics | None = None
    """None where the weights have no BatchNorm statistics."""


@dataclass(frozen=True, slots=True)
class Weights:
    """One state dict under the model's own names, in a safetensors file."""

    path: Path
    digest: Digest
    tensors: tuple[TensorSpec, ...]
    summary: BakeSummary
    provenance: Provenance
