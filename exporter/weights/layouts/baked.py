"""Our own output: baked weights, as a safetensors or a torch file, that say in their metadata what they are.

A baked average is that average, raw weights stay raw weights, and a mean of several checkpoints is an average called by its kind.
The metadata is a claim of the file like any other key: it decides what the one copy in it is called, nothing else.
"""

from __future__ import annotations

from exporter.artifacts import Checkpoint
from exporter.weights.health import Schedule
from exporter.weights.layout import Average, Layout, Match, WeightSet
from exporter.weights.state_dicts import as_weights, child

__all__ = ["LAYOUT"]

CLAIM = "exporter.weights"
_REMARK = "baked by exporter {version} from {checkpoint}"


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise ``exporter.weights`` in the metadata, and one state dict: the file, or under its only key."""
    claim = checkpoint.metadata.get(CLAIM, "")
    kind, _, name = claim.partition(":")
    weights = _weights(checkpoint)
    if not kind or weights is None or not claim.isprintable():
        return None
    facts = {key: checkpoint.metadata.get(f"exporter.{key}", "unknown") for key in ("exporter", "checkpoint")}
    remark = _REMARK.format(version=facts["exporter"], checkpoint=facts["checkpoint"])
    weights = WeightSet(weights.at, weights.tensors, weights.others, remark)
    if kind == "raw":
        return Match("exporter", (), weights)
    updates, decay = (checkpoint.metadata.get(f"exporter.{key}", "") for key in ("ema_updates", "ema_decay"))
    schedule = Schedule("unknown", _decay(decay))
    return Match("exporter", (Average(name if kind == "ema" and name else kind, weights, schedule, _updates(updates)),))


def _weights(checkpoint: Checkpoint) -> WeightSet | None:
    direct = as_weights(checkpoint.root, "")
    if direct is not None or not isinstance(checkpoint.root, dict) or len(checkpoint.root) != 1:
        return direct
    key = next(iter(checkpoint.root))
    return as_weights(child(checkpoint.root, key), str(key))


def _decay(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0.0 < value < 1.0 else None


def _updates(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


LAYOUT = Layout("exporter", (CLAIM,), read)
