"""Does a network fit into float16? Asked of the float32 model on the samples, before anything is built."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from exporter.artifacts import OnnxModel
from exporter.config import Config
from exporter.errors import ExportError

if TYPE_CHECKING:
    from exporter.samples import Samples
    from exporter.verify import NamedFeed, TensorRange

__all__ = ["beyond_float16", "range_check"]

_SHOWN = 8


def range_check(
    config: Config, samples: Samples | None, feeds: tuple[NamedFeed, ...] = ()
) -> Callable[[OnnxModel, frozenset[str]], Mapping[str, str]]:
    """Return the check of a float32 model and of the tensors that are to be stored in float16; it returns facts for the lineage.

    Args:
        samples: recorded ones.
        feeds: instead of those that are made of the samples and of random numbers.
    """
    return functools.partial(_check, config, samples, feeds)


def _check(config: Config, samples: Samples | None, feeds: tuple[NamedFeed, ...], model: OnnxModel, stored: frozenset[str]) -> dict[str, str]:
    """Refuse tensors beyond float16.

    Raises:
        ExportError: a tensor that would be stored in float16 is larger than its largest number (E461).
    """
    from exporter.verify import FLOAT16_LARGEST

    feeds = feeds or _feeds(config, samples, model)
    ranges = [found for found in _measured(config, model, feeds) if found.tensor in stored]
    over = _beyond(ranges)
    if over:
        lines = [f"{found.tensor} ({found.op}): {found.largest:.3g}" for found in over[:_SHOWN]]
        lines += [f"and {len(over) - _SHOWN} more"] if len(over) > _SHOWN else []
        names = list(dict.fromkeys(place for found in over for place in found.places))
        islands = ", ".join(f'"{name}"' for name in (*config.onnx.float32, *names))
        facts = {"found": "\n".join(lines), "expected": f"at most {FLOAT16_LARGEST:g}", "fed": ", ".join(named.name for named in feeds)}
        raise ExportError("E461", "values of the network are beyond float16; nothing was written", facts=facts, help=f"[onnx] float32 = [{islands}]")
    if not ranges:
        return {}
    largest, smallest = max(ranges, key=lambda found: found.largest), max(ranges, key=lambda found: found.small_share)
    return {
        "float16_largest": f"{largest.largest:.3g} in {largest.tensor}",
        "float16_below_normal": f"{smallest.small_share:.1%} in {smallest.tensor}",
    }


def beyond_float16(config: Config, samples: Samples | None, model: OnnxModel, *, edge: bool = False) -> tuple[TensorRange, ...]:
    """Return every tensor of the float32 model that float16 does not hold, whether it is to be stored in it or not.

    Args:
        config: sections samples, parity and latency.
        samples: recorded ones.
        model: with the dtypes of all values.
        edge: look at edge samples too, which the check before an export does not.
    """
    return tuple(_beyond(_measured(config, model, _feeds(config, samples, model, edge=edge))))


def _feeds(config: Config, samples: Samples | None, model: OnnxModel, *, edge: bool = False) -> tuple[NamedFeed, ...]:
    from exporter.verify import make_feeds

    settings = config.samples.replace(edge=edge and config.samples.edge, required=False)
    return make_feeds(samples, model.inputs, settings, config.parity)


def _measured(config: Config, model: OnnxModel, feeds: tuple[NamedFeed, ...]) -> tuple[TensorRange, ...]:
    from exporter.verify import measure_ranges

    return measure_ranges(model, feeds, threads=config.latency.threads)


def _beyond(ranges: Iterable[TensorRange]) -> list[TensorRange]:
    from exporter.verify import FLOAT16_LARGEST

    return [found for found in ranges if not found.largest <= FLOAT16_LARGEST]
