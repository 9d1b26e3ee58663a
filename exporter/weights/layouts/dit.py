"""DiT and SiT: ``model``, ``ema``, ``opt`` and ``args``; the average under its own names.

The training script averages parameters only, with a constant decay of 0.9999. Buffers in ``ema`` are those from the start, as
they were when the model was copied: with BatchNorm in the model they are stale.
"""

from __future__ import annotations

from collections.abc import Mapping

from exporter.artifacts import Checkpoint
from exporter.weights.health import Schedule
from exporter.weights.layout import Average, Layout, Match
from exporter.weights.state_dicts import as_weights, own_names

__all__ = ["LAYOUT"]

RAW, EMA = "model", "ema"
DECAY = 0.9999
_KEYS = {"model", "ema", "opt", "args"}


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise exactly the keys ``model``, ``ema``, ``opt`` and ``args``."""
    root = checkpoint.root
    if not isinstance(root, Mapping) or root.keys() != _KEYS:
        return None
    raw, average = as_weights(root[RAW], RAW), as_weights(root[EMA], EMA)
    if raw is None or average is None:
        return None
    raw = own_names(raw)
    return Match("dit", (Average(EMA, own_names(average, like=raw), Schedule("constant", DECAY), None, "stale"),), raw)


LAYOUT = Layout("dit", (EMA,), read, under="ema")
