"""Stage 6: what the checks found."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["LatencyEvidence", "MetricEvidence", "Outcome", "OutputParity", "ParityEvidence", "RangeEvidence", "Verdict", "worst"]


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
    repeats: str = ""
    """Whether calls that were run twice gave the same bits; empty where they were run once."""
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
    launch: str = ""
    """On a GPU, how the candidate's calls were launched: ``cuda graph``, ``enqueue``, ``eager``, with the reason where a graph could not be had."""
    reference_launch: str = ""
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
class RangeEvidence:
    """How the values of a float32 network, tensor by tensor, lie in the range of float16.

    Attributes:
        not_measured: why there are no numbers; empty where there are.
        feeds: what was fed: ``256 samples, batch 32``, ...
        is_recorded: recorded samples were fed, and not random inputs alone.
        num_tensors: tensors that are stored in float16.
        largest, largest_in: largest magnitude, and ``tensor (operator)``.
        limit: largest finite number of float16.
        small_share, small_in: largest share of one tensor's values that lose digits since they are below float16's normal numbers.
        remarks: what is coarse or could overflow inside of an operator, and weights that a tiny running variance blew up.
    """

    not_measured: str = ""
    feeds: tuple[str, ...] = ()
    num_samples: int = 0
    is_recorded: bool = False
    num_tensors: int = 0
    largest: float = 0.0
    largest_in: str = ""
    limit: float = 65504.0
    small_share: float = 0.0
    small_in: str = ""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one check, with its numbers and its reason.

    Attributes:
        check: ``parity``, ``latency``, ``metric``, ``range`` or ``structure``.
        subject: what was judged: ``torch-fused``, ``onnx``, ``tensorrt``.
        reason: one line; for NOT_RUN what is missing and how to get it.
        required: a required check that is NOT_RUN or INCONCLUSIVE is not a pass.
    """

    check: str
    subject: str
    outcome: Outcome
    reason: str
    required: bool = True
    evidence: ParityEvidence | LatencyEvidence | MetricEvidence | RangeEvidence | None = None
    seconds: float = 0.0


def worst(verdicts: tuple[Verdict, ...]) -> Outcome:
    """Return the overall outcome: the worst of the verdicts; of those that are not required only a FAIL counts.

    A run without any verdict that counts is NOT_RUN, which is not a pass.
    """
    counted = [v.outcome for v in verdicts if v.required or v.outcome in {Outcome.FAIL, Outcome.PASS}]
    return max(counted, key=_BADNESS.__getitem__, default=Outcome.NOT_RUN)
