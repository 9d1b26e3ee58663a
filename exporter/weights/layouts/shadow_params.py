"""torch_ema and diffusers: ``shadow_params``, a list without names, in the order of the model's parameters.

Tied tensors stand in it once and buffers never. The model gives the names; count and every shape must fit. torch_ema writes
``decay`` and ``num_updates`` (None where the decay is constant), diffusers all parameters of its schedule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from exporter.artifacts import Checkpoint, Node
from exporter.weights.health import Schedule
from exporter.weights.layout import Average, Layout, Match
from exporter.weights.layouts.fields import count, number
from exporter.weights.layouts.raw_only import raw_weights
from exporter.weights.naming import list_as_weights
from exporter.weights.state_dicts import child

__all__ = ["LAYOUT", "diffusers_schedule"]

SHADOW = "shadow_params"


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise a list ``shadow_params`` of tensors, at the top or under any key."""
    averages = tuple(_averages(checkpoint.root))
    return Match("shadow-params", averages, raw_weights(checkpoint.root)) if averages else None


def _averages(root: Node) -> Iterator[Average]:
    nodes: dict[str, Node] = {"": root}
    if isinstance(root, Mapping):
        nodes |= {key: node for key, node in root.items() if isinstance(key, str)}
    for at, node in nodes.items():
        items = child(node, SHADOW)
        weights = list_as_weights(items, f"{at}/{SHADOW}".lstrip("/")) if isinstance(items, (list, tuple)) else None
        if weights is not None:
            schedule, updates = diffusers_schedule(node) if child(node, "optimization_step") is not None else _torch_ema(node)
            yield Average(at or SHADOW, weights, schedule, updates, is_nameless=True)


def _torch_ema(node: Node) -> tuple[Schedule, int | None]:
    decay, updates = number(child(node, "decay"), below=1), count(child(node, "num_updates"))
    return Schedule("constant" if updates is None else "tensorflow", decay), updates


def diffusers_schedule(node: Node) -> tuple[Schedule, int | None]:
    """Return the schedule and the number of updates among the numbers that diffusers' EMAModel writes."""
    decay, updates = number(child(node, "decay"), below=1), count(child(node, "optimization_step"))
    minimum, after = number(child(node, "min_decay"), below=1) or 0.0, count(child(node, "update_after_step"))
    if after is None:
        return Schedule("unknown", decay), updates
    if child(node, "use_ema_warmup") is not True:
        return Schedule("tensorflow", decay, minimum=minimum, start=after + 1), updates
    inv_gamma, power = number(child(node, "inv_gamma")), number(child(node, "power"))
    if inv_gamma is None or power is None:
        return Schedule("unknown", decay), updates
    return Schedule("power", decay, inv_gamma=inv_gamma, power=power, minimum=minimum, start=after + 1), updates


LAYOUT = Layout("shadow-params", (SHADOW,), read)
