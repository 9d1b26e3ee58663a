"""A plain dict of averaged weights under a key that says so, as home-made training loops write it.

The weights stand directly under the key, or one level below it beside counters: ``ema.shadow``, ``ema.module``. Such an
average often holds parameters only; buffers that it lacks are taken from the raw weights. Beside ``debias`` or
``zero_debias``, or in the form of the state of ``optax.ema`` (``count`` beside ``ema``), it began with zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from exporter.artifacts import Checkpoint, Node
from exporter.weights.health import Schedule
from exporter.weights.layout import Average, Layout, Match, WeightSet
from exporter.weights.layouts.fields import count, number
from exporter.weights.layouts.raw_only import raw_weights
from exporter.weights.state_dicts import as_weights, child, own_names

__all__ = ["LAYOUT"]

KEYS = (
    "ema",
    "model_ema",
    "ema_model",  # ignite's EMAHandler, under the name that its documentation gives it
    "ema_state_dict",
    "ema_state",  # d2go: parameters first, then buffers
    "ema_params",
    "shadow",
)
INNER_KEYS = ("ema", "shadow", "module", "state_dict", "model", "ema_model", "params")
COUNTERS = ("updates", "num_updates", "n_averaged", "step", "count")
DECAYS = ("decay", "ema_decay")
DEBIASES = ("debias", "zero_debias", "bias_correction")
"""True beside an average that is to be divided by one minus the product of its decays when it is read."""
OPTAX = frozenset({"count", "ema"})
"""The fields of optax.EmaState."""

_TOP_COUNTERS = ("updates", "num_updates", "ema_updates")  # at the top of a file `step` counts training steps
_TOP_DECAYS = ("ema_decay",)


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise one of the keys with weights in or right below it; ``None`` and ``{}`` are no weights."""
    raw = raw_weights(checkpoint.root)
    averages = tuple(_averages(checkpoint.root, raw))
    return Match("dict", averages, raw) if averages else None


def _averages(root: Node, raw: WeightSet | None) -> Iterator[Average]:
    for key in KEYS:
        node = child(root, key)
        inner = {name: weights for name in INNER_KEYS if (weights := as_weights(child(node, name), f"{key}/{name}")) is not None}
        direct = as_weights(node, key) if not inner else None
        schedule, updates = _counters(root, node)
        for name, weights in ({"": _without_counters(direct)} if direct is not None else inner).items():
            called = f"{key}.{name}" if len(inner) > 1 else key
            yield Average(called, own_names(weights, like=raw), schedule, updates, "may be absent", zero_initialised=_began_with_zeros(node))


def _counters(root: Node, node: Node) -> tuple[Schedule, int | None]:
    """Return schedule and number of updates as they stand beside the weights, or at the top of the file."""
    numbers = [*(number(child(node, key), below=1) for key in DECAYS), *(number(child(root, key), below=1) for key in _TOP_DECAYS)]
    counts = [*(count(child(node, key)) for key in COUNTERS), *(count(child(root, key)) for key in _TOP_COUNTERS)]
    decay = next((value for value in numbers if value is not None), None)
    updates = next((value for value in counts if value is not None), None)
    return Schedule("unknown" if decay is None else "constant", decay), updates


def _began_with_zeros(node: Node) -> bool:
    return any(child(node, key) is True for key in DEBIASES) or (isinstance(node, Mapping) and frozenset(node) == OPTAX)


def _without_counters(weights: WeightSet) -> WeightSet:
    """Drop counters that stand between the tensors: numbers, and tensors called like a counter or a decay."""
    names = {*COUNTERS, *DECAYS, *DEBIASES, "initted"}
    tensors = {name: ref for name, ref in weights.tensors.items() if name not in names}
    others = {name: node for name, node in weights.others.items() if name not in names}
    return WeightSet(weights.at, tensors, others, weights.remark)


LAYOUT = Layout("dict", KEYS, read)
