"""Home-made averages with ``shadow`` and ``backup``, by the names of the trainable parameters.

While the average is applied to the model, ``backup`` holds the raw weights: a file saved then has the average under ``model`` as
well. That is believed only where the values say it: ``model`` equal to ``shadow``, and a ``backup`` that has all of its names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from exporter.artifacts import Checkpoint, Node
from exporter.weights.health import Schedule
from exporter.weights.layout import Average, Layout, Match
from exporter.weights.layouts.fields import count, number
from exporter.weights.layouts.raw_only import raw_weights
from exporter.weights.state_dicts import as_weights, child, own_names, same_values

__all__ = ["LAYOUT"]

SHADOW, BACKUP = "shadow", "backup"
KEYS = ("ema", "model_ema", "ema_state", "ema_state_dict")


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise ``shadow`` with ``backup`` beside it, under one of the keys or at the top."""
    for at, node in _places(checkpoint.root):
        shadow = as_weights(child(node, SHADOW), f"{at}/{SHADOW}".lstrip("/"))
        if shadow is None or child(node, BACKUP) is None:
            continue
        raw = raw_weights(checkpoint.root)
        shadow = own_names(shadow, like=raw)
        remarks: tuple[str, ...] = ()
        backup = as_weights(child(node, BACKUP), f"{at}/{BACKUP}".lstrip("/"))
        if backup is not None and raw is not None:
            backup = own_names(backup, like=raw)
            if backup.tensors.keys() == shadow.tensors.keys() and same_values(shadow, raw):
                raw = replace(raw, at=backup.at, tensors={**raw.tensors, **backup.tensors})
                remarks = ("saved while the average was applied: the raw weights are in `backup`",)
        decay = number(child(node, "decay"), below=1)
        updates = next((n for key in ("num_updates", "updates", "step") if (n := count(child(node, key))) is not None), None)
        schedule = Schedule("unknown" if decay is None else "constant", decay)
        return Match("shadow-backup", (Average(at or SHADOW, shadow, schedule, updates, "may be absent"),), raw, remarks=remarks)
    return None


def _places(root: Node) -> Iterator[tuple[str, Node]]:
    yield "", root
    for key in KEYS:
        yield key, child(root, key)


LAYOUT = Layout("shadow-backup", ("shadow",), read)
