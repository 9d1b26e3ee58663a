"""Name the first layer of a candidate whose output departs from the reference beyond what its inputs explain.

Both programs run node by node on the same rows. Layers are matched by module name; where BatchNorm ``b`` was folded into
producer ``p``, the candidate's output of ``p`` is compared with the reference's output of ``b``; a layer between the two, whose
numbers are meant to be others, is compared with nothing. A layer is named where its relative L2 departure is over what rounding makes of
it and over ten times the largest departure among its inputs.

In half precision rounding is no constant: what a layer may depart by is, as in the verdict, a multiple of what rounding makes of the same
layer of the unfused program, and a floor. The rounding of its inputs is in that already, so that three times their departure is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from exporter.artifacts import Graph, OnnxModel
from exporter.runners.base import Array, Feed
from exporter.verify.feeds import NamedFeed
from exporter.verify.layers import LayerKey, Observed
from exporter.verify.tolerance import DEFAULTS

__all__ = ["Departure", "first_departure", "localise", "localise_onnx"]

ROWS = 8
"""Rows of each feed that are looked at."""
AMPLIFICATION = 10.0
AMPLIFICATION_HALF = 3.0
FLOOR = 1e-6
"""Of float64 runs: the folded weights were rounded once to float32."""
FLOOR_ONNX = 1e-5
"""Of float32 runs."""
_FLOORS_ONNX = {"int8": 3e-2, "fp8": 1.5e-1}
"""Of models in 8 bits: what one of their layers is off by."""
_HALVES = ("float16", "bfloat16")
_CHANNEL_SHARE = 0.9
_MAX_CHANNELS = 4
_NOT_FINITE = 1e100
"""Squared error that a NaN or infinity counts as."""


@dataclass(frozen=True, slots=True)
class Departure:
    """A layer of the candidate, how far it is off, how far its inputs were, and how far rounding takes it."""

    layer: Observed
    path: str
    departure: float
    inputs: float
    limit: float
    channels: str
    total: int
    is_sudden: bool


def localise(graph: Graph, feeds: tuple[NamedFeed, ...]) -> str:
    """Compare the folded program with the unfused one, both in float64; return one line that names the layer.

    Raises:
        ModelNotSupported: E624, a program cannot be run node by node.
    """
    from exporter.verify.layers_torch import observe_program

    for named in feeds:
        feed = _head(named)
        reference = _by_key(observe_program(graph.unfused, graph.inputs, feed))
        found = first_departure(reference, observe_program(graph.folded_program, graph.inputs, feed), _folds(graph), _changed(graph), floor=FLOOR)
        if found is not None:
            return _describe(found, named, graph)
    return f"no layer departs by more than {FLOOR:.0e} in float64: the folded graph is right, the error arises where it is run"


def localise_onnx(graph: Graph, model: OnnxModel, feeds: tuple[NamedFeed, ...]) -> str:
    """Compare the ONNX model in ONNX Runtime with the unfused program in float64; return one line that names the layer.

    Raises:
        ModelNotSupported: E624 or E625, one of them cannot be looked into.
    """
    from exporter.verify.layers_onnx import observe_onnx
    from exporter.verify.layers_torch import observe_program

    floor = _FLOORS_ONNX.get(model.precision, FLOOR_ONNX)
    for named in feeds:
        feed = _head(named)
        reference = _by_key(observe_program(graph.unfused, graph.inputs, feed))
        halves = _allowed_in_half(graph, model.precision, feed, reference) if model.precision in _HALVES else {}
        found = first_departure(reference, observe_onnx(model, feed), _folds(graph), _changed(graph), floor=floor, halves=halves)
        if found is not None:
            return _describe(found, named, graph)
    if model.precision in _HALVES:
        return f"no layer departs by more than {model.precision} allows when the operators run one by one: the error is in how they run together"
    return f"no layer departs by more than {floor:.0e} when the operators run one by one: the error arises in an operator that the runtime fused"


def _allowed_in_half(graph: Graph, precision: str, feed: Feed, reference: Mapping[LayerKey, Array]) -> dict[LayerKey, float]:
    """Return what each layer may depart by that is rounded, or comes from rounded values: by the rule of the verdict, from its own error."""
    from exporter.verify.layers_torch import observe_program

    own = _by_key(observe_program(graph.unfused, graph.inputs, feed, rounded=precision))
    tolerance = DEFAULTS[precision]
    return {key: tolerance.factor * _relative_l2(value, own[key]) + tolerance.floor for key, value in reference.items() if key in own}


def first_departure(
    reference: Mapping[LayerKey, Array],
    candidate: list[Observed],
    folds: Mapping[str, str],
    changed: frozenset[str] = frozenset(),
    *,
    floor: float,
    halves: Mapping[LayerKey, float] | None = None,
) -> Departure | None:
    """Return the first layer that departs suddenly, else the one with the largest step, None where all agree.

    Args:
        reference: layer -> value.
        candidate: operators in order.
        folds: producer -> the BatchNorm folded into it.
        changed: modules whose outputs have no counterpart.
        floor: departures up to it are rounding.
        halves: layer -> the same, where it is in half precision or comes from there.
    """
    departures: dict[str, float] = {}
    gradual: Departure | None = None
    for layer in candidate:
        inputs = max((departures.get(name, 0.0) for name in layer.producers), default=0.0)
        departures[layer.node] = inputs
        key = _reference_key(layer.key, folds)
        if key is None or layer.value is None or key not in reference or reference[key].shape != layer.value.shape or key[0] in changed:
            continue
        departure = _relative_l2(reference[key], layer.value)
        departures[layer.node] = departure
        is_half = bool(halves) and layer.is_rounded
        limit = (halves or {}).get(key, floor) if is_half else floor
        if departure <= limit:
            continue
        is_sudden = departure > (AMPLIFICATION_HALF if is_half else AMPLIFICATION) * inputs
        found = Departure(layer, key[0], departure, inputs, limit, _channels(reference[key], layer.value), len(candidate), is_sudden)
        if found.is_sudden:
            return found
        if gradual is None or departure / max(inputs, limit) > gradual.departure / max(gradual.inputs, gradual.limit):
            gradual = found
    return gradual


def _reference_key(key: LayerKey | None, folds: Mapping[str, str]) -> LayerKey | None:
    return None if key is None else (folds.get(key[0], key[0]), *key[1:])


def _folds(graph: Graph) -> dict[str, str]:
    changed = _changed(graph)
    back = (folded for folded in graph.folded if folded.direction == "back" and not folded.changed)
    return {folded.producer: folded.batch_norm for folded in back if folded.producer not in changed}


def _changed(graph: Graph) -> frozenset[str]:
    return frozenset(name for folded in (*graph.folded, *graph.absorbed) for name in folded.changed)


def _by_key(observed: list[Observed]) -> dict[LayerKey, Array]:
    return {layer.key: layer.value for layer in observed if layer.key is not None and layer.value is not None}


def _head(named: NamedFeed) -> Feed:
    """Return the first rows, as many as the model takes at once."""
    chunk = next(iter(named.chunks()))
    return chunk if named.batch <= ROWS else {name: array[:ROWS] for name, array in chunk.items()}


def _relative_l2(reference: Array, candidate: Array) -> float:
    r, c = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    if not np.array_equal(np.isfinite(r), np.isfinite(c)):
        return float("inf")
    finite = np.isfinite(r)
    norm, distance = float(np.linalg.norm(r[finite])), float(np.linalg.norm((c - r)[finite]))
    return 0.0 if distance == 0.0 else distance / norm if norm else float("inf")


def _channels(reference: Array, candidate: Array) -> str:
    """Return ``channels 5 and 17 of 64`` where so few carry nearly all of the error, empty elsewhere."""
    if reference.ndim < 2:
        return ""
    with np.errstate(invalid="ignore"):
        error = np.square(np.asarray(candidate, np.float64) - np.asarray(reference, np.float64))
    error = np.where(np.isfinite(error), error, _NOT_FINITE)
    by_channel = np.moveaxis(error, 1, 0).reshape(reference.shape[1], -1).sum(1)
    order = np.argsort(by_channel)[::-1]
    share = np.cumsum(by_channel[order]) / max(float(by_channel.sum()), 1e-300)
    count = int(np.searchsorted(share, _CHANNEL_SHARE)) + 1
    if count > _MAX_CHANNELS or count >= len(order):
        return ""
    numbers = [str(channel) for channel in sorted(map(int, order[:count]))]
    return f", channel{'s' if count > 1 else ''} {' and '.join(numbers)} of {len(order)}"


def _describe(found: Departure, named: NamedFeed, graph: Graph) -> str:
    layer = found.layer
    producers = {batch_norm: producer for producer, batch_norm in _folds(graph).items()}
    name = producers.get(found.path, found.path) or "the model's own forward"
    place = f"{name} ({layer.op}, node {layer.number} of {found.total})"
    agreement = f"inputs agree to {found.inputs:.0e}" if found.inputs else "inputs are equal"
    allowed = f" (allowed {found.limit:.1e})" if found.layer.is_rounded else ""
    verb = "first divergence:" if found.is_sudden else "no single layer: the error grows; the largest step is at"
    text = f"{verb} {place}: {agreement}, output differs by {found.departure:.1e}{allowed}{found.channels}, on {named.name}"
    return text + (f"; suspect: fold of {found.path} into {producers[found.path]}" if found.path in producers else "")
