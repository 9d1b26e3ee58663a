"""YOLOX: the average is written as ``model``, and the raw weights are not in the file."""

from __future__ import annotations

from dataclasses import replace

from exporter.artifacts import Checkpoint
from exporter.weights.layout import Layout, Match
from exporter.weights.layouts.raw_only import raw_weights
from exporter.weights.state_dicts import child

__all__ = ["LAYOUT"]

KEYS = ("start_epoch", "model", "optimizer")
SCORES = ("best_ap", "curr_ap")


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise ``start_epoch``, ``model`` and ``optimizer`` beside one of YOLOX's scores."""
    root = checkpoint.root
    if any(child(root, key) is None for key in KEYS) or all(child(root, key) is None for key in SCORES):
        return None
    raw = raw_weights(root)
    if raw is None:
        return None
    remark = "laid out as YOLOX does, which writes the average under `model`: probably averaged already, the file cannot tell"
    return Match("yolox", raw=replace(raw, remark=remark))


LAYOUT = Layout("yolox", (), read, under="model")
