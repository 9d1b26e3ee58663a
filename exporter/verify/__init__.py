"""Stage 6/7: Runners + samples -> Verdicts.

Parity of every candidate with the float64 reference (``compare``), latency as a race (``race``), the task metric
(``measure_metric``). What the verdicts mean is in ``docs/verdicts.md``.
"""

from __future__ import annotations

from exporter.verify.calibrating import CalibratedRange, calibrate
from exporter.verify.divergence import localise, localise_onnx
from exporter.verify.engine_tensors import localise_engine
from exporter.verify.equivalence import measure_departure
from exporter.verify.error_numbers import HISTOGRAM_EDGES
from exporter.verify.feeds import NamedFeed, digest_of_feeds, latency_feed, make_feeds
from exporter.verify.latency import race
from exporter.verify.metric import measure_metric
from exporter.verify.not_run import not_run
from exporter.verify.parity import compare
from exporter.verify.ranges import FLOAT16_LARGEST, TensorRange, measure_ranges
from exporter.verify.reference import (
    CandidateOutputs,
    OwnError,
    Reference,
    collect_outputs,
    measure_own_error,
    measure_reference,
    overflowing_feeds,
    without_overflow,
)
from exporter.verify.reference_cache import load_reference, reference_key, save_reference
from exporter.verify.tolerance import DEFAULTS, Tolerance

__all__ = [
    "DEFAULTS",
    "FLOAT16_LARGEST",
    "HISTOGRAM_EDGES",
    "CalibratedRange",
    "CandidateOutputs",
    "NamedFeed",
    "OwnError",
    "Reference",
    "TensorRange",
    "Tolerance",
    "calibrate",
    "collect_outputs",
    "compare",
    "digest_of_feeds",
    "latency_feed",
    "load_reference",
    "localise",
    "localise_engine",
    "localise_onnx",
    "make_feeds",
    "measure_departure",
    "measure_metric",
    "measure_own_error",
    "measure_ranges",
    "measure_reference",
    "not_run",
    "overflowing_feeds",
    "race",
    "reference_key",
    "save_reference",
    "without_overflow",
]
