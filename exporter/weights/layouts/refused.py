"""Layouts that are recognised so that they are not misread, and refused with the reason."""

from __future__ import annotations

from collections.abc import Mapping

from exporter.artifacts import Checkpoint
from exporter.weights.layout import Layout, Match
from exporter.weights.state_dicts import child

__all__ = ["LAYOUTS"]


def _schedule_free(checkpoint: Checkpoint) -> Match | None:
    root = checkpoint.root
    for node in root.values() if isinstance(root, Mapping) else ():
        groups = child(node, "param_groups")
        for group in groups if isinstance(groups, list) else ():
            if child(group, "train_mode") is True:
                return _refuse("schedule-free", "saved in the train mode of a schedule-free optimizer: these weights are not the averaged ones")
    return None


def _refuse(layout: str, reason: str) -> Match:
    return Match(layout, refusal=reason, remarks=(f"not baked: {reason}",))


LAYOUTS: tuple[Layout, ...] = (Layout("schedule-free", (), _schedule_free),)
"""In order of their signatures, strictest first; names as shown and recorded."""
