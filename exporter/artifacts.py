"""The frozen values that flow from stage to stage.

    Checkpoint -> Weights -> Graph -> OnnxModel -> Plan -> Verdict -> Report

Every artefact knows its provenance: what it was made from (path and digest of the parent), with which settings and which
versions. Nothing here reads a file, and nothing here imports a heavy library.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from exporter.locations import Location

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = [
    "BATCH_NORM_SOURCES",
    "BakeSummary",
    "BatchNormStatistics",
    "Checkpoint",
    "Digest",
    "EmaCandidate",
    "Folded",
    "GlobalRef",
    "Graph",
    "LatencyEvidence",
    "LayerChange",
    "LayoutReading",
    "MetricEvidence",
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
    "Recalibration",
    "Refusal",
    "RefusalReason",
    "Report",
    "Selection",
    "ShardRef",
    "StageRecord",
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

Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"


# --------------------------------------------------------------------------------------------------------------------
# provenance


@dataclass(frozen=True, slots=True)
class Digest:
    """A SHA-256 and what it was taken over.

    Attributes:
        of: ``file``: every byte; ``contents``: the structure of the file and the CRC-32 that stands for each run of bytes in it,
            which tells an accident from the real thing, not an attack on the CRC-32; ``object``: what a server says identifies a
            remote file; ``tensors``; ``settings``.
    """

    hex: str
    of: Literal["file", "contents", "object", "tensors", "settings"] = "file"

    def __str__(self) -> str:
        """Return ``sha256:<hex>``; ``contents-sha256:<hex>`` or ``object-sha256:<hex>`` where it was not taken over all bytes of a file."""
        return f"{f'{self.of}-' if self.of in {'contents', 'object'} else ''}sha256:{self.hex}"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an artefact came from, complete enough to make it again."""

    stage: str
    made_from: Mapping[str, str] = field(default_factory=dict)
    """What -> digest: ``{"checkpoint": "sha256:...", "model": "sha256:..."}``."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able settings that decided the content."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Library -> version: ``exporter``, ``torch``, ..."""
    lineage: Mapping[str, str] = field(default_factory=dict)
    """Facts handed down from the checkpoint on: ``checkpoint``, ``checkpoint_sha256`` (or ``_contents_``, ``_object_``), ``weights``, ..."""


# --------------------------------------------------------------------------------------------------------------------
# stage 1: Checkpoint


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A run of bytes in a file that tensors look into."""

    key: str
    """Name of the storage inside the container; tensors with the same key share memory."""
    path: Location
    offset: int
    """Absolute position of the first byte in ``path``."""
    size_bytes: int
    crc32: int | None = None
    """What the container says of these bytes; None where it says nothing (safetensors)."""
    crc32c: int | None = None
    """The same by another polynomial, Castagnoli's, where the container uses that (TensorFlow)."""


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor that was not loaded: a strided view of a storage.

    Attributes:
        dtype: torch's name without prefix: ``float32``, ``float16``, ``bfloat16``, ``int64``, ``bool``, ``float8_e4m3fn``, ...
        strides: in elements.
        offset: of the first element, in elements from the start of the storage.
        shards: the boxes that it is put together from, where it was saved in parts; they tile it exactly. Its own storage then
            only counts their bytes: there is no place in a file where they stand one after the other.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    storage: StorageRef
    is_parameter: bool = False
    shards: tuple[ShardRef, ...] = ()

    @property
    def num_elements(self) -> int:
        """Return the number of elements of the view."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class ShardRef:
    """One box of a tensor that was saved in parts: where it begins on every axis, and its elements."""

    begin: tuple[int, ...]
    tensor: TensorRef


@dataclass(frozen=True, slots=True)
class GlobalRef:
    """A global (class or function) that a pickle names; a record, never imported and never called."""

    module: str
    name: str

    def __str__(self) -> str:
        """Return ``module.name``."""
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class ObjectRef:
    """What a pickle would have constructed from ``callee``: an inert record of its arguments, state and items."""

    callee: GlobalRef
    args: tuple[Node, ...] = ()
    state: Node = None
    items: Mapping[Any, Node] | list[Node] | None = None
    """What the pickle appended or set on the object (subclasses of list and dict)."""
    is_call: bool = False
    """True where the pickle *calls* (REDUCE) rather than makes an instance (NEWOBJ)."""


Node: TypeAlias = (
    "None | bool | int | float | complex | str | bytes | TensorRef | StorageRef | GlobalRef | ObjectRef"
    " | Mapping[Any, Node] | list[Node] | tuple[Node, ...] | set[Node] | frozenset[Node]"
)


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A file, or several that belong together, as written by training: a tree of plain values and tensor references.

    Attributes:
        path: what the user named: the file or URL, or the folder or index of several.
        container: ``torch zip``, ``safetensors``, ...
        size_bytes: of all files together.
        root: the tree; for safetensors a flat mapping of names to tensors.
        globals: every global that the file names, in order of first use.
        calls: the globals that the file would have *called* and that are not among those which trainers write;
            key path -> global. A stage refuses such a file; ``exporter inspect`` shows it.
        metadata: what the container itself says (safetensors ``__metadata__``, torch zip version and byte order).
        contents: what identifies the file without reading its tensors: where the container has a checksum for each of them, or a
            server says which version of a remote file it is.
        files: every file that was read or that tensors stand in, where ``path`` is not the only one; else empty.
    """

    path: Location
    container: str
    size_bytes: int
    root: Node
    globals: tuple[GlobalRef, ...] = ()
    calls: Mapping[str, GlobalRef] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Location, ...] = ()
    contents: Digest | None = None


def brief(node: object, most: int = 80) -> str:
    """Return a node as text of at most ``most`` characters, or what it is where its text could be long: containers may share their parts."""
    if isinstance(node, (str, bytes)):
        return str(node[:most])[:most]
    if isinstance(node, (int, float, complex, GlobalRef)) or node is None:
        return str(node)[:most]
    if isinstance(node, (tuple, list)) and len(node) <= 8 and all(type(item) is int for item in node):
        return str(node)[:most]
    return f"{type(node).__name__} of {len(node)}" if isinstance(node, Sized) else type(node).__name__


_MAX_PATH, _MAX_LABEL = 400, 400
_LEAVES = frozenset({str, int, float, bool, type(None), bytes, complex, TensorRef, GlobalRef, StorageRef})


def walk(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Yield ``(key path, node)`` for every node below and including ``node``, depth first, each container once.

    Key paths read as in ``state_dict_ema/layer1.0.weight``, ``optimizer/param_groups/[0]/lr`` and, inside a pickled object,
    ``ema.<state>/_modules/...``. Keys and paths of a length that no name has are cut.
    """
    seen: set[int] = set()
    todo: list[tuple[str, str, Node]] = [(path, "", node)]
    while todo:
        before, label, item = todo.pop()
        here = before + label
        yield here, item
        if type(item) in _LEAVES or id(item) in seen:
            continue
        seen.add(id(item))
        here = here if len(here) <= _MAX_PATH else here[:_MAX_PATH] + "..."
        prefix = f"{here}/" if here else ""
        children: list[tuple[str, str, Node]] = []
        if isinstance(item, Mapping):
            children = [(prefix, _label(key), value) for key, value in item.items()]
        elif isinstance(item, (list, tuple)):
            children = [(prefix, f"[{index}]", value) for index, value in enumerate(item)]
        elif isinstance(item, (set, frozenset)):
            children = [(prefix, "{}", value) for value in item]
        elif isinstance(item, ObjectRef):
            children = [(prefix, "<args>", item.args)] if item.args else []
            if item.state is not None:
                children.append((here, ".<state>", item.state))
            if item.items is not None:
                children.append((here, ".<items>", item.items))
        todo.extend(reversed(children))


def _label(key: Node) -> str:
    return key if isinstance(key, str) and len(key) <= _MAX_LABEL else brief(key, _MAX_LABEL)


# --------------------------------------------------------------------------------------------------------------------
# stage 2: Weights


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
class TensorSpec:
    """Name, shape and dtype of a tensor; a string in the shape is a dynamic axis."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Weights:
    """One state dict under the model's own names, in a safetensors file."""

    path: Path
    digest: Digest
    tensors: tuple[TensorSpec, ...]
    summary: BakeSummary
    provenance: Provenance


# --------------------------------------------------------------------------------------------------------------------
# stage 3: Graph


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


# --------------------------------------------------------------------------------------------------------------------
# stages 4 and 5: OnnxModel, Plan


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """An ONNX file that passed the full checker."""

    path: Path
    digest: Digest
    opset: int
    ir_version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    num_nodes: int
    num_batch_norms: int
    metadata: Mapping[str, str]
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Profile:
    """An optimization profile: input name -> (min, opt, max) shapes."""

    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Plan:
    """A serialised TensorRT engine with its sidecar."""

    path: Path
    sidecar_path: Path
    digest: Digest
    precision: str
    realised_precision: Mapping[str, float]
    """Share of layers by precision, as the engine inspector tells it; empty where the inspector says nothing."""
    tensorrt_version: str
    gpu: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    build_seconds: float
    provenance: Provenance


# --------------------------------------------------------------------------------------------------------------------
# stage 6: Verdict


class Outcome(enum.Enum):
    """What a check came to."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    INCONCLUSIVE = "INCONCLUSIVE"
    NOT_RUN = "NOT_RUN"
    FAIL = "FAIL"


_BADNESS = {Outcome.PASS: 0, Outcome.NOT_RUN: 1, Outcome.INCONCLUSIVE: 2, Outcome.FAIL: 3}


@dataclass(frozen=True, slots=True)
class OutputParity:
    """How one output of a candidate compares with the float64 reference, over all samples of one feed.

    Attributes:
        own_error: relative L2 error that the unfused model itself makes in the candidate's precision.
        allowed: the relative L2 error that would still pass.
        max_violation: the largest ``|c - r| / (atol + rtol |r|)``; over 1 fails.
        smallest_rtol: the smallest rtol (atol scaled with it) that would have passed element by element and in relative L2.
        argmax_total, argmax_equal, argmax_ties: rows, rows with the same argmax, differing rows whose margin is below the
            tolerance; None for outputs that have no class axis.
        histogram: counts of ``log10(|c - r| / rms(r))`` in the bins of ``HISTOGRAM_EDGES`` of ``verify``.
    """

    output: str
    shape: tuple[int, ...]
    dtype: str
    outcome: Outcome
    reason: str
    max_abs: float
    p999_abs: float
    relative_l2: float
    own_error: float
    allowed: float
    cosine: float
    sqnr_db: float
    atol: float
    rtol: float
    max_violation: float
    smallest_rtol: float
    num_nonfinite: int = 0
    argmax_total: int | None = None
    argmax_equal: int | None = None
    argmax_ties: int | None = None
    worst_index: tuple[int, ...] = ()
    histogram: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ParityEvidence:
    """The numbers behind a parity verdict."""

    candidate: str
    precision: str
    reference: str
    """``torch float64 on the CPU, unfused``."""
    feeds: tuple[str, ...]
    """What was fed: ``300 samples, batch 32``, ``zeros``, ..."""
    num_samples: int
    outputs: tuple[OutputParity, ...]
    """One per output of the reference, the worst feed of each."""
    predecessor: str = ""
    """The candidate before this one in the chain, compared as well so that the stage that broke it is known."""
    predecessor_relative_l2: Mapping[str, float] = field(default_factory=dict)
    extra_outputs: tuple[str, ...] = ()
    batch_invariance: float | None = None
    """Largest relative L2 difference between a row computed alone and in its batch."""
    localisation: str = ""
    """On FAIL: the first layer whose output departs, by name, with the numbers; empty otherwise."""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LatencyEvidence:
    """The numbers behind a latency verdict; times in milliseconds per call.

    Attributes:
        speedup, speedup_low, speedup_high: reference / candidate with its interval; > 1 is faster than the reference.
        confidence: of the two-sided interval, e.g. 0.999.
        false_alarm_rate: of the one-sided gate.
        samples_ms, reference_samples_ms: pooled raw samples.
        round_log_ratios: one per round: log(median candidate / median reference).
    """

    candidate: str
    reference: str
    device: str
    batch: int
    threads: int | None
    rounds: int
    iterations_per_block: int
    required: str
    """``speedup >= 2.00`` or ``no more than 2 % slower``."""
    speedup: float
    speedup_low: float
    speedup_high: float
    bootstrap_low: float
    bootstrap_high: float
    confidence: float
    false_alarm_rate: float
    percentiles_ms: Mapping[str, float]
    """``p50``, ``p90`` and, from 662 samples on, ``p99``."""
    reference_percentiles_ms: Mapping[str, float]
    first_call_ms: float
    load_ms: float
    round_log_ratios: tuple[float, ...]
    samples_ms: tuple[float, ...]
    reference_samples_ms: tuple[float, ...]
    clock: str
    """``perf_counter`` or ``cuda events``."""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MetricEvidence:
    """A task metric side by side: contestant -> value, higher is better."""

    metric: str
    values: Mapping[str, float]
    reference: str
    allowed_drop: float
    num_samples: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one check, with its numbers and its reason.

    Attributes:
        check: ``parity``, ``latency``, ``metric``, ``precision`` or ``structure``.
        subject: what was judged: ``torch-fused``, ``onnx``, ``tensorrt``.
        reason: one line; for NOT_RUN what is missing and how to get it.
        required: a required check that is NOT_RUN or INCONCLUSIVE is not a pass.
    """

    check: str
    subject: str
    outcome: Outcome
    reason: str
    required: bool = True
    evidence: ParityEvidence | LatencyEvidence | MetricEvidence | None = None
    seconds: float = 0.0


def worst(verdicts: tuple[Verdict, ...]) -> Outcome:
    """Return the overall outcome: the worst of the verdicts; of those that are not required only a FAIL counts.

    A run without any verdict that counts is NOT_RUN, which is not a pass.
    """
    counted = [v.outcome for v in verdicts if v.required or v.outcome in {Outcome.FAIL, Outcome.PASS}]
    return max(counted, key=_BADNESS.__getitem__, default=Outcome.NOT_RUN)


# --------------------------------------------------------------------------------------------------------------------
# stage 7: Report


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What one stage of a run did."""

    stage: str
    state: Literal["made", "up to date", "NOT_RUN"]
    seconds: float
    summary: str
    path: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a run found out; rendered by ``report/``, stored as ``report.json``."""

    run: str
    """Name of the run folder: ``2026-11-21-1``."""
    started: str
    """ISO 8601 with offset."""
    seconds: float
    outcome: Outcome
    stages: tuple[StageRecord, ...]
    verdicts: tuple[Verdict, ...]
    lineage: Mapping[str, str]
    config: Mapping[str, Any]
    environment: Mapping[str, str]
    bake: BakeSummary | None = None
    folded: tuple[Folded, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    histogram_edges: tuple[float, ...] = ()
    remarks: tuple[str, ...] = ()


# --------------------------------------------------------------------------------------------------------------------
# JSON


def to_json(value: Any) -> Any:  # noqa: ANN401 - any artefact goes in
    """Return ``value`` as plain JSON types; NaN and infinity become the strings ``"nan"``, ``"inf"`` and ``"-inf"``.

    Raises:
        TypeError: for a value that has no place in an artefact.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Digest):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no place in an artefact")
