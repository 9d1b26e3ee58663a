"""BatchNorm's running statistics beside averaged weights: where they come from, and which copy of them is taken.

They were measured with one set of weights. Averaged with the weights, or estimated anew with the average, they fit it; those of the
raw weights, or from before averaging began, may not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

from exporter.artifacts import BatchNormStatistics, Checkpoint
from exporter.errors import LayoutError
from exporter.weights.blend import Source
from exporter.weights.layout import Average, WeightSet
from exporter.weights.state_dicts import same_values

if TYPE_CHECKING:
    from exporter.config import BakeConfig

__all__ = ["count_layers", "is_statistic", "refuse_without_statistics", "source_of", "statistics_from", "statistics_of"]

Origin: TypeAlias = Literal["averaged", "copied", "stored", "raw", "stale", "own", "recalibrated"]

_MEANS = frozenset({"running_mean", "moving_mean"})
_STATISTICS = _MEANS | {"running_var", "moving_variance"}
_COUNTER = "num_batches_tracked"

_WARNINGS: dict[Origin, str] = {
    "raw": "the average has no BatchNorm statistics, and those of the raw weights may not fit it",
    "stale": "the BatchNorm statistics were never updated since the average was made, and may not fit it",
}
_HELP: dict[Origin, str] = {
    "raw": "--bn-stats recalibrate estimates them on your samples, --bn-stats raw says that they are wanted",
    "stale": "--bn-stats recalibrate estimates them on your samples, --bn-stats raw takes those of the raw weights",
}


def is_statistic(name: str, *, with_counter: bool = False) -> bool:
    """Return whether a tensor of this name is a running mean or variance, or, ``with_counter``, the counter beside them."""
    own = name.replace("/", ".").rpartition(".")[2]
    return own in _STATISTICS or (with_counter and own == _COUNTER)


def count_layers(names: Iterable[str]) -> int:
    """Return how many layers with statistics these names of tensors belong to."""
    return sum(name.replace("/", ".").rpartition(".")[2] in _MEANS for name in names)


def source_of(average: Average, raw: WeightSet | None) -> Origin | None:
    """Return where the statistics come from by the rule of the layout, None where the weights have none.

    Nothing is read: that two copies are equal is known from the checksums of the container.
    """
    own = {name: ref for name, ref in average.weights.tensors.items() if is_statistic(name)}
    if raw is not None and any(is_statistic(name) and name not in own for name in raw.tensors):
        return "raw"
    if not own:
        return None
    if average.buffers == "stale":
        return "stale"
    if average.buffers == "copied" or (raw is not None and same_values(WeightSet("", own), raw)):
        return "copied"
    return "averaged" if average.buffers == "averaged" else "stored"


def statistics_from(
    checkpoint: Checkpoint,
    average: Average,
    raw: WeightSet | None,
    tensors: Mapping[str, tuple[Source, bool, Source | None]],
    config: BakeConfig,
) -> dict[str, tuple[Source, bool, Source | None]]:
    """Return the plan of a bake with the statistics, and the counters beside them, of the copy that ``config`` asks for.

    Raises:
        LayoutError: the raw weights (E255) or the average (E256) lack statistics, or there are none at all (E257).
    """
    refuse_without_statistics(checkpoint, tensors, config)
    if config.bn_stats == "auto":
        return dict(tensors)
    copy = average.weights if config.bn_stats == "ema" else raw
    planned = dict(tensors)
    for name in filter(lambda name: is_statistic(name, with_counter=True), tensors):
        ref = copy.tensors.get(name) if copy is not None else None
        if ref is None and is_statistic(name):
            raise _lacking(checkpoint, name, config, average)
        if ref is not None and (config.bn_stats == "raw" or not is_statistic(name)):
            planned[name] = (ref, False, None)  # statistics of the average are planned already, divided where it began with zeros
    return planned


def refuse_without_statistics(checkpoint: Checkpoint, names: Iterable[str], config: BakeConfig) -> None:
    """Refuse to choose statistics for weights that have none.

    Raises:
        LayoutError: E257; E258 where the statistics of an average are asked for with the raw weights; E259 where they are to be
            estimated anew, for which a bake has neither model nor samples.
    """
    if config.bn_stats == "auto":
        return
    facts: dict[str, object] = {"file": checkpoint.path, "found": f"bn_stats {config.bn_stats!r}"}
    if config.choice == "raw" and config.bn_stats == "ema":
        raise LayoutError("E258", "BatchNorm statistics of the average were asked for beside raw weights", facts=facts, help="leave out --bn-stats")
    if config.bn_stats == "recalibrate":
        facts["meaning"] = "estimating takes the model and samples, after the bake"
        raise LayoutError(
            "E259", "a bake by itself cannot estimate BatchNorm statistics", facts=facts, help="exporter bake-ema --bn-stats recalibrate"
        )
    if not any(map(is_statistic, names)):
        facts["looked at"] = ", ".join(sorted(_STATISTICS))
        raise LayoutError("E257", "the weights have no BatchNorm statistics to choose", facts=facts, help="leave out --bn-stats")


def statistics_of(names: Iterable[str], average: Average | None, raw: WeightSet | None, config: BakeConfig) -> BatchNormStatistics | None:
    """Return what the bake of tensors with these names says of its statistics; None where it has none."""
    num_layers = count_layers(names)
    if not num_layers:
        return None
    if average is None:
        return BatchNormStatistics("own", config.bn_stats, num_layers)
    source = source_of(average, raw) or "stored"
    if config.bn_stats == "raw":
        return BatchNormStatistics("raw", "raw", num_layers)
    if config.bn_stats == "auto" and source in _WARNINGS:
        return BatchNormStatistics(source, "auto", num_layers, f"{_WARNINGS[source]}: {_HELP[source]}")
    return BatchNormStatistics(source, config.bn_stats, num_layers)


def _lacking(checkpoint: Checkpoint, name: str, config: BakeConfig, average: Average) -> LayoutError:
    facts: dict[str, object] = {"file": checkpoint.path, "missing": name}
    if config.bn_stats == "raw":
        help_text = "--bn-stats ema takes those of the average, --bn-stats recalibrate estimates them on your samples"
        return LayoutError("E255", "BatchNorm statistics of the raw weights were asked for, and the file has none", facts=facts, help=help_text)
    facts["at"] = average.weights.at or "the top of the file"
    help_text = "--bn-stats raw takes those of the raw weights, --bn-stats recalibrate estimates them on your samples"
    return LayoutError("E256", "BatchNorm statistics of the average were asked for, and it has none", facts=facts, help=help_text)
