"""fairseq: ``model``, and the average in ``extra_state.ema``, with a float32 twin in ``extra_state.ema_fp32_params`` where it trains in half.

Names that contain ``version`` are not averaged. The decay is not in the file.
"""

from __future__ import annotations

from exporter.artifacts import Checkpoint
from exporter.weights.layout import Average, Layout, Match
from exporter.weights.state_dicts import as_weights, child, own_names

__all__ = ["LAYOUT"]

RAW, EXTRA = "model", "extra_state"
AVERAGES = ("ema", "ema_fp32_params")


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise ``extra_state`` with ``ema`` beside ``model``."""
    root = checkpoint.root
    extra = child(root, EXTRA)
    if child(extra, "ema") is None:
        return None
    raw = as_weights(child(root, RAW), RAW)
    if raw is None or as_weights(child(extra, "ema"), "") is None:
        return None
    raw = own_names(raw)
    unversioned = frozenset(name for name in raw.tensors if "version" in name)
    averages = []
    for key in AVERAGES:
        weights = as_weights(child(extra, key), f"{EXTRA}/{key}")
        if weights is not None:
            own = own_names(weights, like=raw)
            averages.append(Average(f"{EXTRA}.{key}", own, buffers="may be absent", copied=unversioned - frozenset(own.tensors)))
    return Match("fairseq", tuple(averages), raw)


LAYOUT = Layout("fairseq", ("extra_state.ema",), read, under="model")
