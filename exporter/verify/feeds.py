"""What every contestant is fed: recorded samples at several batch sizes, seeded random ones, and edge samples.

kind      rows                                         values
recorded  all at the largest batch size, 32 at others  as recorded
random    ``[samples] random``                         uniform in the range of the recorded ones, else standard normal
edge      1 to 4                                       zeros, the lowest and the highest recorded value, 10 x the range

Where the profiles of an engine are known, their smallest, optimal and largest shapes are fed too: with recorded samples where these have
the shape, else with random ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from exporter.artifacts import Profile, TensorSpec
from exporter.config import ParityConfig, SamplesConfig
from exporter.errors import SampleError
from exporter.runners.base import Array, Feed
from exporter.runners.feed_check import check_feed, numpy_dtype
from exporter.samples import Samples
from exporter.verify.profile_shapes import Shapes, corners, nearest_batch, rows_of

__all__ = ["FeedKind", "NamedFeed", "digest_of_feeds", "latency_feed", "make_feeds"]

FeedKind: TypeAlias = Literal["recorded", "random", "edge"]

SMALLER_BATCH_ROWS = 32
"""Rows run at each batch size but the largest."""
LARGE_RANGE = 10.0
LARGE_ROWS = 4


@dataclass(frozen=True, slots=True, eq=False)
class NamedFeed:
    """Rows for every input, run ``batch`` at a time.

    Attributes:
        feed: input name -> array ``(rows, ...)``; the number of rows is a multiple of ``batch``.
        num_samples: distinct rows; the rest repeats the first ones to fill the last batch.
    """

    name: str
    kind: FeedKind
    feed: Feed
    batch: int
    num_samples: int

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.feed.values())))

    def chunks(self) -> Iterator[Feed]:
        """Yield ``batch`` rows at a time."""
        for start in range(0, self.rows, self.batch):
            yield {name: array[start : start + self.batch] for name, array in self.feed.items()}


def make_feeds(
    samples: Samples | None,
    inputs: tuple[TensorSpec, ...],
    config: SamplesConfig,
    parity: ParityConfig,
    *,
    profiles: tuple[Profile, ...] = (),
) -> tuple[NamedFeed, ...]:
    """Return the feeds of a parity check, in the order in which they are run.

    Args:
        samples: recorded ones, None where there are none.
        inputs: of the model.
        config: how many samples of which kind.
        parity: the batch sizes.
        profiles: of the engine; random and edge samples come in batches that it takes.

    Raises:
        SampleError: the samples do not fit the inputs (E611 to E614), samples are required and there are none (E615), an
            axis beside the batch is dynamic and neither sample nor profile says its size (E616), or there is nothing to feed (E617).
    """
    if samples is None and config.required:
        raise SampleError("E615", "samples are required and none are configured", help='[samples] path = "samples.npz", or required = false')
    fixed = fixed_batch(inputs)
    kept = samples.head(config.limit) if samples is not None else None
    if kept is not None:
        check_feed(_rows(kept.inputs, fixed) if fixed else kept.inputs, inputs, runner="samples")
    shapes = {spec.name: _row_shape(spec, kept, profiles) for spec in inputs}
    ranges = {spec.name: _range(spec, kept) for spec in inputs}
    known, others = _split_corners(profiles, shapes)
    batches = sorted({fixed} if fixed else {*parity.batches, *known}, reverse=True)
    feeds: list[NamedFeed] = []
    if kept is not None:
        for batch in batches:
            count = len(kept) if batch == batches[0] else min(len(kept), SMALLER_BATCH_ROWS)
            feeds.append(_feed(f"{count} samples, batch {batch}", "recorded", {n: a[:count] for n, a in kept.inputs.items()}, batch))
    rng = np.random.default_rng(config.seed)
    if config.random:
        batch = fixed or nearest_batch(profiles, shapes, config.random)
        rows = {spec.name: _random(rng, spec, (config.random, *shapes[spec.name]), ranges[spec.name]) for spec in inputs}
        feeds.append(_feed(f"{config.random} random, batch {batch}", "random", rows, batch))
    others += [] if kept is not None or fixed else [{name: (batch, *row) for name, row in shapes.items()} for batch in known]
    for corner in others:
        rows = {spec.name: _random(rng, spec, corner[spec.name], ranges[spec.name]) for spec in inputs}
        text = "; ".join(f"{name} {'x'.join(map(str, corner[name]))}" for name in rows)
        feeds.append(_feed(f"random, {text}", "random", rows, len(next(iter(rows.values())))))
    if config.edge:
        feeds += _edge_feeds(inputs, shapes, ranges, lambda count: fixed or nearest_batch(profiles, shapes, count), config.seed)
    if not feeds:
        raise SampleError("E617", "there is nothing to feed the model with", help="[samples] path, random or edge: at least one of them")
    return tuple(feeds)


def _split_corners(profiles: tuple[Profile, ...], rows: Shapes) -> tuple[list[int], list[Shapes]]:
    """Return the batch sizes of the profiles' corners that have these rows, and the corners that have others."""
    batches, others = set(), []
    for corner in corners(profiles):
        if rows_of(corner) == dict(rows):
            batches.add(next(iter(corner.values()))[0])
        else:
            others.append(corner)
    return sorted(batches), others


def latency_feed(
    samples: Samples | None, inputs: tuple[TensorSpec, ...], config: SamplesConfig, *, batch: int, profiles: tuple[Profile, ...] = ()
) -> Feed:
    """Return ``batch`` rows for a race: recorded samples, repeated where there are too few, else seeded random ones.

    Raises:
        SampleError: E611 to E614, the samples do not fit the inputs; E616, an axis beside the batch is dynamic and neither a
            sample nor a profile says its size.
    """
    fixed = fixed_batch(inputs)
    count = fixed or batch
    if samples is not None:
        feed = _rows(samples.inputs, count)
        check_feed(feed, inputs, runner="samples")
        return feed
    rng = np.random.default_rng(config.seed)
    return {spec.name: _random(rng, spec, (count, *_row_shape(spec, None, profiles)), None) for spec in inputs}


def digest_of_feeds(feeds: tuple[NamedFeed, ...]) -> str:
    """Return the SHA-256 over names, batch sizes, shapes, dtypes and values of ``feeds``."""
    digest = hashlib.sha256()
    for named in feeds:
        digest.update(f"{named.name}\0{named.kind}\0{named.batch}\0{named.num_samples}\0".encode())
        for name in sorted(named.feed):
            array = np.ascontiguousarray(named.feed[name])
            digest.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def fixed_batch(inputs: tuple[TensorSpec, ...]) -> int | None:
    """Return the batch size that the model is fixed to, None where its first axis is dynamic."""
    sizes = [spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], int)]
    return sizes[0] if sizes else None


def _feed(name: str, kind: FeedKind, rows: Feed, batch: int) -> NamedFeed:
    count = len(next(iter(rows.values())))
    return NamedFeed(name, kind, _rows(rows, -(-count // batch) * batch), batch, count)


def _rows(feed: Feed, count: int) -> dict[str, Array]:
    """Return the first ``count`` rows, starting again from the first where there are fewer."""
    return {name: array[np.arange(count) % len(array)] for name, array in feed.items()}


def _row_shape(spec: TensorSpec, samples: Samples | None, profiles: tuple[Profile, ...]) -> tuple[int, ...]:
    if samples is not None:
        return samples.inputs[spec.name].shape[1:]
    if profiles and spec.name in profiles[0].shapes:
        return profiles[0].shapes[spec.name][1][1:]  # what the engine is tuned for
    sizes = tuple(size for size in spec.shape[1:] if isinstance(size, int))
    if len(sizes) != len(spec.shape) - 1:
        facts = {"input": spec.name, "found": f"({', '.join(map(str, spec.shape))})"}
        raise SampleError(
            "E616", "an axis is dynamic and no sample says its size", facts=facts, help='[samples] path = "samples.npz", or [tensorrt] profiles'
        )
    return sizes


def _range(spec: TensorSpec, samples: Samples | None) -> tuple[float, float] | None:
    if samples is None:
        return None
    values = samples.inputs[spec.name]
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return (float(finite.min()), float(finite.max())) if finite.size else None


def _random(rng: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...], span: tuple[float, float] | None, factor: float = 1.0) -> Array:
    dtype = numpy_dtype(spec.dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        low, high = (int(span[0]), int(span[1])) if span else (0, 1)
        return rng.integers(low, high, shape, endpoint=True).astype(dtype)
    values = rng.uniform(*span, size=shape) if span else rng.standard_normal(shape)
    return (factor * values).astype(dtype)


def _edge_feeds(
    inputs: tuple[TensorSpec, ...],
    shapes: dict[str, tuple[int, ...]],
    ranges: dict[str, tuple[float, float] | None],
    allowed: Callable[[int], int],
    seed: int,
) -> list[NamedFeed]:
    rows = allowed(1)
    unknown = (-1.0, 1.0)
    feeds = []
    for name, index in (("zeros", None), ("constant, lowest", 0), ("constant, highest", 1)):
        constants = {}
        for spec in inputs:
            dtype = numpy_dtype(spec.dtype)
            span = ranges[spec.name] or ((0.0, 1.0) if dtype.kind in "iub" else unknown)
            value = 0.0 if index is None else span[index]
            if dtype.kind in "iu" and index is None:
                value = min(max(0.0, span[0]), span[1])  # an index of zero where zero is in range
            constants[spec.name] = np.full((rows, *shapes[spec.name]), value, dtype)
        feeds.append(NamedFeed(name, "edge", constants, rows, 1))
    if any(numpy_dtype(spec.dtype).kind not in "iub" for spec in inputs):
        rng = np.random.default_rng([seed, 1])
        count = allowed(LARGE_ROWS)
        large = {spec.name: _random(rng, spec, (count, *shapes[spec.name]), ranges[spec.name], LARGE_RANGE) for spec in inputs}
        feeds.append(NamedFeed(f"{LARGE_RANGE:g} x the range", "edge", large, count, count))
    return feeds
