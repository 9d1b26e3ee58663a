"""k-diffusion's training script: ``model``, ``model_ema`` and the schedule of the average in ``ema_sched``.

Parameters are averaged, buffers copied at every update. The decay follows clamp(1 - (1 + n / inv_gamma) ** -power, min, max),
with all of its numbers in the file.
"""

from __future__ import annotations

from exporter.artifacts import Checkpoint, Node
from exporter.weights.health import Schedule
from exporter.weights.layout import Average, Layout, Match
from exporter.weights.layouts.fields import count, number
from exporter.weights.state_dicts import as_weights, child, own_names

__all__ = ["LAYOUT"]

RAW, EMA, SCHEDULE = "model", "model_ema", "ema_sched"


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise ``ema_sched`` with ``last_epoch`` beside ``model`` and ``model_ema``."""
    root = checkpoint.root
    epoch = child(child(root, SCHEDULE), "last_epoch")
    if epoch is None:
        return None
    raw, average = as_weights(child(root, RAW), RAW), as_weights(child(root, EMA), EMA)
    if raw is None or average is None:
        return None
    raw = own_names(raw)
    averages = (Average(EMA, own_names(average, like=raw), _schedule(child(root, SCHEDULE)), count(epoch), "copied"),)
    return Match("k-diffusion", averages, raw)


def _schedule(node: Node) -> Schedule:
    """Return the schedule of EMAWarmup; its first update has epoch 0."""
    inv_gamma, power, start = number(child(node, "inv_gamma")), number(child(node, "power")), count(child(node, "start_at"))
    decay, minimum = number(child(node, "max_value"), below=1), number(child(node, "min_value"), below=1) or 0.0
    if inv_gamma is None or power is None or start is None:
        return Schedule("unknown", decay)
    return Schedule("power", decay, inv_gamma=inv_gamma, power=power, minimum=minimum, start=start + 1)


LAYOUT = Layout("k-diffusion", (SCHEDULE,), read, under="model_ema")
