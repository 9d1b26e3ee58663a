"""Baked weights with BatchNorm statistics estimated anew on the samples, and what that changes in what the network says."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifacts import BatchNormStatistics, Digest, Provenance, Recalibration, Weights
from exporter.config import Config, InputConfig
from exporter.errors import LayoutError, SampleError
from exporter.files import digest_of_file, digest_of_settings
from exporter.samples import Samples
from exporter.weights import replace_statistics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from exporter.runners import Runner

__all__ = ["recalibrated", "recalibration_key", "require_samples"]

_FEW_VALUES = 256
"""Below this many values per channel the standard error of a variance, sqrt(2 / n), is over 9 %."""


def require_samples(config: Config, samples: Samples | None) -> tuple[Samples, Digest]:
    """Return the samples and the SHA-256 of their file.

    Raises:
        SampleError: none are configured (E615).
    """
    if samples is None or config.samples.path is None:
        facts = {"meaning": "BatchNorm statistics are estimated on recorded samples; they need no labels"}
        raise SampleError("E615", "samples are required and none are configured", facts=facts, help='[samples] path = "samples.npz"')
    return samples, digest_of_file(config.resolve(config.samples.path))


def recalibration_key(weights_key: str, config: Config, samples: Digest, identity: str, inputs: tuple[InputConfig, ...]) -> str:
    """Return the digest of everything that decides the new statistics and what is said of them."""
    parts = {
        "stage": "recalibration",
        "weights": weights_key,
        "samples": samples.hex,
        "labels": config.samples.labels,
        "compared": config.samples.limit,
        "seed": config.samples.seed,
        "model": identity,
        "inputs": [entry.to_json() for entry in inputs],
        "outputs": list(config.model.outputs),
        "metric": config.metric.to_json(),
        "threads": config.latency.threads,
    }
    return digest_of_settings(parts).hex


def recalibrated(
    weights: Weights,
    output: Path,
    build: Callable[[], nn.Module],
    config: Config,
    samples: Samples,
    inputs: tuple[InputConfig, ...],
    *,
    key: str,
    samples_digest: Digest,
    identity: str,
    progress: Callable[[int, int], None],
) -> Weights:
    """Estimate the statistics of ``weights`` anew and write the result to ``output``.

    Args:
        weights: as baked, with the statistics of the checkpoint.
        output: another file than that of ``weights``.
        build: returns the network with ``weights`` loaded, anew at each call.
        config: ``weights.bn_batch``, ``samples``, ``metric`` and ``latency.threads`` are used.
        samples: all of them are used.
        inputs: of the network.
        key: of the record.
        samples_digest: of the file with the samples.
        identity: of the network.
        progress: called with steps done and in all.

    Raises:
        LayoutError: the weights have no BatchNorm statistics (E257), or a new one does not fit their dtype (E213).
        SampleError: the samples do not fit (E611 to E614), or are too few (E324).
        ExportError: the network cannot be run (E306), or its statistics cannot be estimated (E320).
    """
    from exporter.factories.recalibration import batches_of, output_names, recalibrate_
    from exporter.runners.torch import TorchRunner

    if weights.summary.batch_norm is None:
        facts = {"file": weights.path, "found": "bn_stats 'recalibrate'"}
        raise LayoutError("E257", "the weights have no BatchNorm statistics to choose", facts=facts, help="leave out --bn-stats")
    steps = 3
    progress(0, steps)
    old, new = build(), build()
    threads, batch = config.latency.threads, config.weights.bn_batch
    names = output_names(old, samples.inputs, config.model.outputs)
    compared = samples.head(config.samples.limit)
    with contextlib.ExitStack() as stack:
        before = stack.enter_context(TorchRunner("before", old, inputs, names, threads=threads))
        first = _outputs(before, compared, batch)  # runs the samples before anything changes: they have to fit
        progress(1, steps)
        found = recalibrate_(new, samples.inputs, batches_of(len(samples), batch, config.samples.seed), threads=threads)
        progress(2, steps)
        after = stack.enter_context(TorchRunner("after", new, inputs, names, threads=threads))
        drift = _drift(first, _outputs(after, compared, batch))
        metric, values = _metric(before, after, samples, config)
    result = Recalibration(
        num_samples=len(samples),
        samples_sha256=samples_digest.hex,
        batch=batch,
        layers=found.layers,
        not_reached=found.not_reached,
        num_compared=len(compared),
        output_drift=drift,
        metric=metric,
        metric_before=values.get("before"),
        metric_after=values.get("after"),
    )
    statistics = BatchNormStatistics("recalibrated", "recalibrate", weights.summary.batch_norm.num_layers, _warning(result), result)
    made = replace_statistics(
        weights, found.arrays, output, key=key, statistics=statistics, provenance=_provenance(weights, config, result, identity)
    )
    progress(steps, steps)
    return made


def _provenance(weights: Weights, config: Config, result: Recalibration, identity: str) -> Provenance:
    from exporter.factories import installed_version

    said = f"recalibrated on {result.num_samples} samples, sha256:{result.samples_sha256}"
    return dataclasses.replace(
        weights.provenance,
        made_from={**weights.provenance.made_from, "samples": f"sha256:{result.samples_sha256}", "model": identity},
        settings=config.weights.to_json(),
        versions={**weights.provenance.versions, "torch": installed_version("torch")},
        lineage={**weights.provenance.lineage, "bn_stats": said},
    )


def _outputs(runner: Runner, samples: Samples, batch: int) -> dict[str, list[NDArray[Any]]]:
    found: dict[str, list[NDArray[Any]]] = {}
    for begin in range(0, len(samples), batch):
        for name, array in runner.infer({name: array[begin : begin + batch] for name, array in samples.inputs.items()}).items():
            found.setdefault(name, []).append(array)
    return found


def _drift(before: Mapping[str, list[NDArray[Any]]], after: Mapping[str, list[NDArray[Any]]]) -> dict[str, float]:
    """Return ``||after - before|| / ||before||`` of every floating output."""
    import numpy as np

    drift = {}
    for name, arrays in before.items():
        pairs = [(old.astype(np.float64), new.astype(np.float64)) for old, new in zip(arrays, after[name], strict=True) if old.dtype.kind in "fV"]
        if not pairs or any(old.shape != new.shape for old, new in pairs):
            continue
        distance = math.sqrt(sum(_squares(new - old) for old, new in pairs))
        size = math.sqrt(sum(_squares(old) for old, _ in pairs))
        drift[name] = distance / size if size else 0.0 if not distance else math.inf
    return drift


def _squares(array: NDArray[np.float64]) -> float:
    return float((array * array).sum())


def _metric(before: Runner, after: Runner, samples: Samples, config: Config) -> tuple[str, dict[str, float]]:
    """Return the name of the metric and its values; nothing where none is configured and there are no labels."""
    from exporter.artifacts import MetricEvidence
    from exporter.verify import measure_metric

    verdicts = measure_metric({"before": before, "after": after}, samples, config.metric, reference="before", base=config.base)
    evidence = verdicts[0].evidence if verdicts else None
    return (evidence.metric, dict(evidence.values)) if isinstance(evidence, MetricEvidence) else ("", {})


def _warning(result: Recalibration) -> str:
    """Return what stands against the new statistics; empty where nothing does."""
    warnings = []
    if result.values_per_channel < _FEW_VALUES:
        layer = min(result.layers, key=lambda change: change.values_per_channel).layer
        error = math.sqrt(2 / result.values_per_channel)
        warnings.append(
            f"{layer} had {result.values_per_channel} values per channel, which leaves an error of about {error:.0%} in a variance: "
            f"{_FEW_VALUES} or more are better"
        )
    if result.not_reached:
        warnings.append(f"no sample came through {', '.join(result.not_reached[:4])}, whose statistics are as they were")
    return "; ".join(warnings)
