"""The task metric of several runners side by side, with an allowed drop."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from exporter.artifacts import MetricEvidence, Outcome, Verdict
from exporter.config import MetricConfig
from exporter.errors import SampleError
from exporter.runners.base import Array, Runner
from exporter.samples import Samples
from exporter.verify.feeds import fixed_batch

__all__ = ["accuracy", "measure_metric", "metric_of"]

METRIC_BATCH = 64

Metric: TypeAlias = Callable[[Any, Array], float]
"""``(outputs, labels) -> a number``, higher is better; ``outputs`` is the array of the only or the named output over all
samples, else a dict of all outputs by name."""


def measure_metric(
    runners: Mapping[str, Runner],
    samples: Samples,
    config: MetricConfig,
    *,
    reference: str,
    base: Path,
    shown_only: tuple[str, ...] = ("raw",),
) -> tuple[Verdict, ...]:
    """Measure every runner on all samples, and judge each but the reference.

    Args:
        runners: contestant -> runner, entered.
        samples: with labels.
        config: which metric of which output, and the allowed drop.
        reference: the contestant that the others may fall ``allowed_drop`` behind.
        base: folder that ``file.py:callable`` is relative to.
        shown_only: contestants whose value is reported and not judged: the raw weights are another model.

    Returns:
        One verdict per judged contestant, each with the values of all; none where no metric is configured and there are no
        labels to compute the accuracy from.

    Raises:
        SampleError: E631 to E635, the metric cannot be computed.
    """
    if not config.function and samples.labels is None:
        return ()
    name, metric = _resolve(config, base)
    if samples.labels is None:
        raise SampleError("E631", "the metric needs labels and the samples have none", facts={"metric": name}, help='[samples] labels = "label"')
    start = time.perf_counter()
    values = {
        contestant: _value(metric, name, _select(_outputs(runner, samples), config.output), samples.labels) for contestant, runner in runners.items()
    }
    evidence = MetricEvidence(name, values, reference, config.allowed_drop, len(samples))
    seconds = time.perf_counter() - start
    return tuple(_judge(contestant, evidence, seconds) for contestant in values if contestant != reference and contestant not in shown_only)


def metric_of(runner: Runner, samples: Samples, config: MetricConfig, *, base: Path) -> tuple[str, float]:
    """Return name and value of the configured metric, by default the accuracy, of one runner on all samples, which have labels.

    Raises:
        SampleError: E632 to E635, the metric cannot be computed.
    """
    name, metric = _resolve(config, base)
    labels = samples.labels
    if labels is None:
        raise SampleError("E631", "the metric needs labels and the samples have none", facts={"metric": name}, help='[samples] labels = "label"')
    return name, _value(metric, name, _select(_outputs(runner, samples), config.output), labels)


def accuracy(scores: Array, labels: Array) -> float:
    """Return the share of rows whose largest score is at the label.

    Args:
        scores: ``(N, classes)``.
        labels: ``(N,)`` integers.
    """
    return float((np.asarray(scores, np.float64).argmax(-1) == labels).mean())


def _judge(contestant: str, evidence: MetricEvidence, seconds: float) -> Verdict:
    value, before = evidence.values[contestant], evidence.values[evidence.reference]
    drop = before - value
    passes = math.isfinite(drop) and drop <= evidence.allowed_drop + 1e-12
    text = f"{evidence.metric} {value:.4f}, {evidence.reference} {before:.4f}"
    reason = text if passes else f"{text}: the drop of {drop:.4f} is more than the allowed {evidence.allowed_drop:.4f}"
    return Verdict("metric", contestant, Outcome.PASS if passes else Outcome.FAIL, reason, evidence=evidence, seconds=seconds)


def _outputs(runner: Runner, samples: Samples) -> dict[str, Array]:
    """Return the outputs of all samples, by name; the last batch of a fixed-batch model is filled and cut again."""
    batch = fixed_batch(runner.inputs) or METRIC_BATCH
    found: dict[str, list[Array]] = {}
    for first in range(0, len(samples), batch):
        rows = np.arange(first, first + batch) if fixed_batch(runner.inputs) else np.arange(first, min(first + batch, len(samples)))
        kept = min(batch, len(samples) - first)
        feed = {name: array[rows % len(samples)] for name, array in samples.inputs.items()}
        for name, array in runner.infer(feed).items():
            found.setdefault(name, []).append(array[:kept] if array.ndim and len(array) == len(rows) else array)
    return {name: np.concatenate(arrays) if arrays[0].ndim else np.stack(arrays) for name, arrays in found.items()}


def _resolve(config: MetricConfig, base: Path) -> tuple[str, Metric]:
    if config.function in {"", "accuracy"}:

        def top1(outputs: Any, labels: Array) -> float:  # noqa: ANN401 - see Metric
            return accuracy(_scores(outputs, labels), labels)

        return "accuracy", top1
    return config.function, _load_callable(config.function, base)


def _select(outputs: dict[str, Array], output: str) -> dict[str, Array] | Array:
    """Return the output that the configuration names, the only one, or all of them by name."""
    if output and output not in outputs:
        raise SampleError("E632", "the metric names an output that the model does not have", facts={"found": ", ".join(outputs), "expected": output})
    if output or len(outputs) == 1:
        return outputs[output or next(iter(outputs))]
    return outputs


def _scores(outputs: dict[str, Array] | Array, labels: Array) -> Array:
    if isinstance(outputs, dict):
        facts = {"found": ", ".join(outputs)}
        raise SampleError("E632", "the model has several outputs and the metric names none", facts=facts, help='[metric] output = "..."')
    if outputs.ndim < 2 or outputs.shape[:-1] != labels.shape:
        facts = {"found": f"scores {outputs.shape}, labels {labels.shape}", "expected": "scores (N, classes), labels (N,)"}
        raise SampleError("E633", "the accuracy needs one row of scores per label", facts=facts, help='[metric] function = "metrics.py:mine"')
    return outputs


def _value(metric: Metric, name: str, outputs: dict[str, Array] | Array, labels: Array) -> float:
    try:
        value = metric(outputs, labels)
        return float(value)
    except SampleError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as err:
        facts = {"metric": name, "found": f"{type(err).__name__}: {err}"}
        raise SampleError(
            "E634", "the metric could not be computed", facts=facts, help="it takes (outputs, labels) as arrays and returns a number"
        ) from err


def _load_callable(text: str, base: Path) -> Metric:
    """Return what ``module:callable`` or ``file.py:callable`` names; this runs the user's code, on purpose."""
    place, _, attribute = text.rpartition(":")
    facts = {"found": text, "expected": "module:callable or file.py:callable"}
    if not place or not attribute:
        raise SampleError("E635", "the metric is not named as a callable", facts=facts)
    try:
        module = _import_file(base / place) if place.endswith(".py") else importlib.import_module(place)
        found = getattr(module, attribute)
    except (ImportError, OSError, SyntaxError, AttributeError) as err:
        raise SampleError("E635", "the metric cannot be imported", facts=facts | {"found": f"{text}: {err}"}) from err
    if not callable(found):
        raise SampleError("E635", "the metric is not callable", facts=facts | {"found": f"{text} is a {type(found).__name__}"})
    metric: Metric = found
    return metric


def _import_file(path: Path) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader(f"_exporter_metric_{path.stem}", str(path))
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(loader.name, loader, origin=str(path)))
    loader.exec_module(module)
    return module
