"""DeepSpeed's model states: the weights under ``module``, a key and no prefix; what the trainer adds stands beside it.

An average is whatever the trainer put into ``client_state``; the other layouts find it under its usual key. With 16-bit training
``module`` holds 16-bit weights; the float32 masters are shared out over the optimizer's files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from exporter.artifacts import Checkpoint
from exporter.weights.layout import Layout, Match
from exporter.weights.state_dicts import as_weights, child, own_names

__all__ = ["LAYOUT"]

RAW = "module"
_SIGNATURE = ("ds_version", "ds_config", "dp_world_size", "mp_world_size", "param_shapes", "skipped_steps")
_HALF = {"float16", "bfloat16"}


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise ``module`` beside at least two of the keys that DeepSpeed's engine writes."""
    root = checkpoint.root
    if not isinstance(root, Mapping) or sum(key in root for key in _SIGNATURE) < 2:
        return None
    raw = as_weights(child(root, RAW), RAW)
    if raw is None:
        return None
    raw = own_names(raw)
    if any(ref.dtype in _HALF for ref in raw.tensors.values()):
        raw = replace(raw, remark="16-bit weights; the float32 masters are in the optimizer's files, which are not read")
    return Match("deepspeed", (), raw)


LAYOUT = Layout("deepspeed", (RAW,), read)
