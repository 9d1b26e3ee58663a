"""diffusers' ``EMAModel.save_pretrained``: a folder with the average, ``unet_ema/``, beside the one with the raw weights, ``unet/``.

Parameters are averaged. Buffers in the folder of the average are those of a model that was built anew for saving it. The schedule
and the number of updates are in its ``config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping

from exporter.artifacts import Checkpoint, Node
from exporter.weights.layout import Average, Layout, Match
from exporter.weights.layouts.shadow_params import diffusers_schedule
from exporter.weights.state_dicts import as_weights, child, own_names

__all__ = ["LAYOUT"]

SUFFIX, STATE, CONFIG, STEPS = "_ema", "state_dict", "config", "optimization_step"


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise ``config`` with ``optimization_step`` beside ``state_dict``, in ``<name>_ema`` or at the top."""
    root = checkpoint.root
    if child(child(root, CONFIG), STEPS) is not None:
        average = _average(root, "ema", STATE)
        return Match("diffusers", (average,)) if average is not None else None
    for name, node in root.items() if isinstance(root, Mapping) else ():
        if isinstance(name, str) and name.endswith(SUFFIX) and child(child(node, CONFIG), STEPS) is not None:
            average = _average(node, name, f"{name}/{STATE}")
            at = f"{name.removesuffix(SUFFIX)}/{STATE}"
            raw = as_weights(child(child(root, name.removesuffix(SUFFIX)), STATE), at)
            if average is not None:
                return Match("diffusers", (average,), own_names(raw) if raw is not None else None)
    return None


def _average(node: Node, name: str, at: str) -> Average | None:
    weights = as_weights(child(node, STATE), at)
    if weights is None:
        return None
    schedule, updates = diffusers_schedule(child(node, CONFIG))
    return Average(name, own_names(weights), schedule, updates, "stale")


LAYOUT = Layout("diffusers", (f"*{SUFFIX}/{CONFIG}.json",), read)
