"""Does a network fit into float16? Asked of the float32 model on the samples, before anything is built."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from exporter.artifacts import Folded, OnnxModel, Outcome, RangeEvidence, TensorSpec, Verdict
from exporter.config import Config
from exporter.errors import ExportError

if TYPE_CHECKING:
    from exporter.onnx_export.precision import HalfValues
    from exporter.samples import Samples
    from exporter.verify import NamedFeed
    from exporter.verify.ranges import TensorRange

__all__ = ["beyond_float16", "feeds_to_measure", "range_check", "range_verdict"]

_SHOWN = 8
_MANY = 10.0
_SMALLEST_SHOWN = 0.001
_FEWER = 3
_COARSE = 512.0
"""From here on neighbours in float16 are 0.5 apart, and more."""
_FRACTION_BITS = 10


def feeds_to_measure(config: Config, samples: Samples | None, inputs: tuple[TensorSpec, ...]) -> tuple[NamedFeed, ...]:
    """Return what the ranges are measured on: the samples and random inputs, no edge samples; nothing where float16 was not asked for."""
    from exporter.verify import make_feeds

    if config.onnx.precision != "float16":
        return ()
    if not config.onnx.dynamic_batch:
        inputs = tuple(TensorSpec(spec.name, (1, *spec.shape[1:]), spec.dtype) for spec in inputs)
    return make_feeds(samples, inputs, config.samples.replace(edge=False, required=False), config.parity)


def range_check(config: Config, feeds: tuple[NamedFeed, ...], folded: Sequence[Folded] = ()) -> Callable[[OnnxModel, HalfValues], RangeEvidence]:
    """Return the check of a float32 model and of what of it is to be in float16.

    Args:
        feeds: what is run; nothing where the model's inputs cannot be made.
        folded: what was folded into the model: a channel with next to no variance blows weights up.
    """
    return functools.partial(_check, config, feeds, folded)


def range_verdict(ranges: RangeEvidence, subject: str = "onnx") -> Verdict:
    """Return the verdict on what was measured: values beyond float16 are an error before the file is written, so that it is never FAIL."""
    if ranges.not_measured:
        return Verdict("range", subject, Outcome.NOT_RUN, f"not measured: {ranges.not_measured}", required=False, evidence=ranges)
    if not ranges.is_recorded:
        reason = f'no samples are recorded, and random inputs prove little ([samples] path = "samples.npz"); with them: {_told(ranges)}'
        return Verdict("range", subject, Outcome.NOT_RUN, reason, required=False, evidence=ranges)
    return Verdict("range", subject, Outcome.PASS, _told(ranges), evidence=ranges)


def _told(ranges: RangeEvidence) -> str:
    if not ranges.largest:
        return "every value that is stored in float16 is zero"
    margin = ranges.limit / ranges.largest
    share = f"at most {ranges.small_share:.1%}" if ranges.small_share >= _SMALLEST_SHOWN else f"under {_SMALLEST_SHOWN:.1%}"
    below = f"; {share} of one tensor below 6.1e-5, where digits are lost: {ranges.small_in}" if ranges.small_share else ""
    return f"largest value {ranges.largest:.3g} in {ranges.largest_in}, {_times(margin)} times below {ranges.limit:g}{below}"


def _times(margin: float) -> str:
    return f"{margin:.1f}" if margin < _MANY else f"{margin:.0f}"


def _check(config: Config, feeds: tuple[NamedFeed, ...], folded: Sequence[Folded], model: OnnxModel, values: HalfValues) -> RangeEvidence:
    """Measure the tensors.

    Raises:
        ExportError: a tensor that would be stored in float16 is larger than its largest number (E461).
    """
    from exporter.verify import FLOAT16_LARGEST, measure_ranges

    if not feeds:
        return RangeEvidence(not_measured="inputs like those of the model cannot be made up")
    ranges = [found for found in measure_ranges(model, feeds, threads=config.latency.threads) if found.tensor in values.stored]
    over = [found for found in ranges if found.largest > FLOAT16_LARGEST]
    if over:
        raise _refusal(config, over, folded, feeds)
    recorded = [named.num_samples for named in feeds if named.kind == "recorded"]
    measured = RangeEvidence(
        feeds=tuple(named.name for named in feeds),
        is_recorded=bool(recorded),
        num_samples=max(recorded) if recorded else max(named.num_samples for named in feeds),
        num_tensors=len(ranges),
        limit=FLOAT16_LARGEST,
        remarks=(*_remarks(ranges, values, folded), *_weight_remarks(values, folded)),
    )
    if not ranges:
        return measured
    largest, smallest = max(ranges, key=lambda found: found.largest), max(ranges, key=lambda found: found.small_share)
    return dataclasses.replace(
        measured,
        largest=largest.largest,
        largest_in=_name(largest),
        small_share=smallest.small_share,
        small_in=_name(smallest) if smallest.small_share else "",
    )


def beyond_float16(config: Config, samples: Samples | None, model: OnnxModel, *, edge: bool = False) -> tuple[TensorRange, ...]:
    """Return every tensor of the float32 model that float16 does not hold or that is not finite, whether it is to be stored in it or not.

    Args:
        config: sections samples, parity and latency.
        samples: recorded ones.
        model: with the dtypes of all values.
        edge: look at edge samples too, which the check before an export does not.
    """
    from exporter.verify import FLOAT16_LARGEST, make_feeds, measure_ranges

    feeds = make_feeds(samples, model.inputs, config.samples.replace(edge=edge and config.samples.edge, required=False), config.parity)
    ranges = measure_ranges(model, feeds, threads=config.latency.threads)
    return tuple(found for found in ranges if found.largest > FLOAT16_LARGEST or not found.is_finite)


def _refusal(config: Config, over: list[TensorRange], folded: Sequence[Folded], feeds: tuple[NamedFeed, ...]) -> ExportError:
    lines = [f"{_name(found)}: {found.largest:.3g}" for found in over[:_SHOWN]]
    lines += [f"and {len(over) - _SHOWN} more"] if len(over) > _SHOWN else []
    facts = {"found": "\n".join(lines), "expected": "at most 65504", "fed": ", ".join(named.name for named in feeds)}
    islands = ", ".join(f'"{name}"' for name in dict.fromkeys((*config.onnx.float32, *(place for found in over for place in found.places))))
    help_text = f"[onnx] float32 = [{islands}]"
    if culprits := _steep_in(over, folded):
        facts["since"] = "\n".join(map(_steep_text, culprits))
        help_text += "\nor, where such a channel is dead, clamp its running_var in the checkpoint to what its neighbours have"
    return ExportError("E461", "values of the network are beyond float16; nothing was written", facts=facts, help=help_text)


def _remarks(ranges: list[TensorRange], values: HalfValues, folded: Sequence[Folded]) -> list[str]:
    remarks = []
    coarse = sorted((found for found in ranges if found.largest > _COARSE), key=lambda found: -found.largest)
    if coarse:
        steps = [
            f"{_name(found)} {found.largest:.3g}, steps of {2.0 ** (math.floor(math.log2(found.largest)) - _FRACTION_BITS):g}" for found in coarse
        ]
        remarks.append(f"above 512 float16 has steps of 0.5 and more: {_few(steps)}")
    summed = sorted(
        (found for found in ranges if found.tensor in values.computed and found.summed > RangeEvidence().limit), key=lambda found: -found.summed
    )
    if summed:
        texts = [f"{_name(found)} {found.summed:.3g}" for found in summed]
        remarks.append(f"sums that may pass 65504 on the way, if they are made in float16: {_few(texts)}; islands: [onnx] float32")
    broken = [found for found in ranges if not found.is_finite]
    if broken:
        remarks.append(f"not finite in float32 either: {_few([_name(found) for found in broken])}")
    return [*remarks, *(f'{_steep_text(item)}; island: [onnx] float32 = ["{item.producer}"], or clamp' for item in _steep_in(coarse, folded))]


def _step_at(value: float) -> float:
    """Return how far apart neighbours in float16 are at ``value``."""
    return float(2.0 ** (math.floor(math.log2(value)) - _FRACTION_BITS))


def _weight_remarks(values: HalfValues, folded: Sequence[Folded]) -> list[str]:
    """Return what blew up weights so far that their operator stays in float32."""
    steep = [item for item in folded if item.steep is not None and item.producer in values.constants]
    return [f"{item.producer} stays in float32, since folded weights are beyond float16: {_steep_text(item)}" for item in steep]


def _steep_in(ranges: Sequence[TensorRange], folded: Sequence[Folded]) -> list[Folded]:
    """Return the folds with next to no variance that went into the makers of these tensors."""
    makers = {found.places[0] for found in ranges if found.places}
    return [item for item in folded if item.steep is not None and item.producer in makers]


def _steep_text(item: Folded) -> str:
    steep = item.steep
    if steep is None:
        return ""
    more = f"; {steep.num - 1} more such channels" if steep.num > 1 else ""
    factor = f"which multiplies {item.producer} by {steep.factor:.3g} (channels have {steep.typical:.3g} at the median)"
    return f"channel {steep.channel} of {item.batch_norm} has a running variance of {steep.variance:.2g}, {factor}{more}"


def _name(found: TensorRange) -> str:
    return f"{found.tensor} ({found.op})"


def _few(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - _FEWER} more" if len(texts) > _FEWER else ""
    return "; ".join(texts[:_FEWER]) + more
