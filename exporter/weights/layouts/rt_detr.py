"""RT-DETR, D-FINE and DEIM: ``model``, and ``ema`` with the keys ``module`` and ``updates``.

Here ``module`` is a key of the file, not a prefix. Every floating entry is averaged with decay 0.9999 (1 - exp(-n / 2000)); D-FINE
and DEIM use 1000 where their configuration does not say otherwise, and ``warmups`` counts where it was saved.
"""

from __future__ import annotations

from collections.abc import Mapping

from exporter.artifacts import Checkpoint
from exporter.weights.health import Schedule
from exporter.weights.layout import Average, Layout, Match
from exporter.weights.layouts.fields import count, number
from exporter.weights.layouts.raw_only import raw_weights
from exporter.weights.state_dicts import as_weights, child, own_names

__all__ = ["LAYOUT"]

EMA, INNER = "ema", "module"
DECAY, TAU = 0.9999, 2000.0
_KEYS = {"module", "updates", "warmups"}


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise ``ema`` with ``module`` and ``updates`` and nothing that another trainer writes."""
    node = child(checkpoint.root, EMA)
    average = as_weights(child(node, INNER), f"{EMA}/{INNER}")
    if average is None or not isinstance(node, Mapping) or "updates" not in node or not node.keys() <= _KEYS:
        return None
    raw = raw_weights(checkpoint.root)
    schedule = Schedule("ramp", DECAY, number(child(node, "warmups")) or TAU)
    averages = (Average(EMA, own_names(average, like=raw), schedule, count(child(node, "updates")), "averaged"),)
    return Match("rt-detr", averages, raw)


LAYOUT = Layout("rt-detr", ("ema.module",), read, under="model")
