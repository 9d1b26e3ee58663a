"""Flat names of a distributed checkpoint: ``model.conv.weight`` beside ``optim.state.conv.weight.exp_avg``.

A dict of dicts keeps its keys in the metadata. Some trainers save one flat dict instead; then the first step of each name is the
key, where the names show that there are several groups: an optimizer's or an average's beside the model's.
"""

from __future__ import annotations

from collections.abc import Mapping

from exporter.artifacts import Node, TensorRef

__all__ = ["regrouped"]

_OPTIMIZERS = {"optim", "optimizer", "optimizers"}
_AVERAGES = {"ema", "model_ema", "ema_model", "ema_state_dict", "ema_params", "swa_model", "shadow"}
_SLOTS = (".exp_avg", ".exp_avg_sq", ".max_exp_avg_sq", ".momentum_buffer", ".step")


def regrouped(root: dict[str, Node]) -> dict[str, Node]:
    """Return ``root`` with flat names grouped by their first step, or as it is where it is no flat dict of several groups."""
    groups: dict[str, dict[str, Node]] = {}
    for name, value in root.items():
        group, dot, rest = name.partition(".")
        if not dot and isinstance(value, TensorRef):
            return root
        if dot:
            groups.setdefault(group, {})[rest] = value
    if len(groups) < 2 or not any(group in _OPTIMIZERS | _AVERAGES or _is_optimizer(names) for group, names in groups.items()):
        return root
    single: dict[str, Node] = {name: value for name, value in root.items() if "." not in name}
    if single.keys() & groups.keys():
        return root
    return {**groups, **single}


def _is_optimizer(names: Mapping[str, Node]) -> bool:
    return any(name.endswith(slot) for slot in _SLOTS for name in names)
