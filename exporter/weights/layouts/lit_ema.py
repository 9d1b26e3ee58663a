"""LitEma of latent diffusion: averaged parameters as buffers whose names lost their dots, inside the module's own ``state_dict``.

``LitEma(self.model)`` becomes ``model_ema.``: for every trainable parameter ``model.a.weight`` a buffer ``model_ema.aweight``, and
the buffers ``decay`` and ``num_updates`` (-1: constant decay, otherwise min(decay, (1 + n) / (10 + n))). The names are rebuilt
forward from the raw ones. Buffers, frozen parameters and what stands beside the averaged part of the module are raw.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

from exporter.artifacts import Checkpoint
from exporter.weights.blend import Source
from exporter.weights.health import Schedule
from exporter.weights.layout import Average, Layout, Match, WeightSet
from exporter.weights.layouts.fields import count, number
from exporter.weights.naming import forward_names, refuse_unexplained
from exporter.weights.state_dicts import as_weights, child, own_names

__all__ = ["LAYOUT"]

COUNTERS = ("decay", "num_updates")
MAX_AVERAGES = 8
"""More than a module has; each is looked for among all names."""


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise ``<prefix>.decay`` and ``<prefix>.num_updates`` beside names without dots behind the same prefix."""
    for at, node in (("state_dict", child(checkpoint.root, "state_dict")), ("", checkpoint.root)):
        weights = as_weights(node, at)
        if weights is None:
            continue
        found = [_average(checkpoint, weights, prefix) for prefix in itertools.islice(_prefixes(weights), MAX_AVERAGES)]
        if found:
            averages = tuple(average for average, _ in found)
            ema = {name for _, names in found for name in names}
            raw = WeightSet(at, {name: ref for name, ref in weights.tensors.items() if name not in ema}, weights.others)
            copied = [frozenset(raw.tensors) - frozenset(average.weights.tensors) for average in averages]
            averages = tuple(Average(a.name, a.weights, a.schedule, a.updates, copied=c) for a, c in zip(averages, copied, strict=True))
            return Match("lit-ema", averages, raw)
    return None


def _prefixes(weights: WeightSet) -> Iterator[str]:
    inner: dict[str, list[str]] = {}
    for name in weights.tensors:
        prefix, dot, rest = name.partition(".")
        if dot:
            inner.setdefault(prefix, []).append(rest)
    for prefix, names in inner.items():
        if {*COUNTERS} <= set(names) and len(names) > len(COUNTERS) and not any("." in name for name in names):
            yield f"{prefix}."


def _average(checkpoint: Checkpoint, weights: WeightSet, prefix: str) -> tuple[Average, set[str]]:
    """Return the average behind ``prefix`` under the names of the raw weights, and its names as written."""
    written = {name for name in weights.tensors if name.startswith(prefix)}
    mangled = {name.removeprefix(prefix): weights.tensors[name] for name in written}
    buffers = {name: ref for name, ref in mangled.items() if name not in COUNTERS}
    raw = [name for name in weights.tensors if name not in written]
    part = _averaged_part(raw, buffers)
    names = [name.removeprefix(part) for name in raw if name.startswith(part)]
    at = f"{weights.at}/{prefix}".lstrip("/")
    table = forward_names(checkpoint.path, at, names, _without_dots, buffers, reserved=COUNTERS)
    refuse_unexplained(checkpoint.path, at, buffers, table)
    tensors = {f"{part}{table[name]}": ref for name, ref in buffers.items()}
    updates = count(mangled["num_updates"])
    decay = number(mangled["decay"], below=1)
    schedule = Schedule("tensorflow" if updates is not None else "constant", decay)
    average = Average(prefix.rstrip("."), own_names(WeightSet(at.rstrip("."), tensors)), schedule, updates)
    return average, written


def _averaged_part(raw: list[str], buffers: dict[str, Source]) -> str:
    """Return the prefix of the part of the module that is averaged: the one whose names explain most of the buffers."""
    explained = Counter({"": sum(_without_dots(name) in buffers for name in raw)})
    for name in raw:
        part, dot, rest = name.partition(".")
        if dot:
            explained[f"{part}."] += _without_dots(rest) in buffers
    return max(explained, key=explained.__getitem__)


def _without_dots(name: str) -> str:
    return name.replace(".", "")


LAYOUT = Layout("lit-ema", ("model_ema.num_updates",), read, under="state_dict")
