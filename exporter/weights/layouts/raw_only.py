"""Raw weights under the usual keys, a bare state dict, or a pickled module: the file as it is, with no average known."""

from __future__ import annotations

import re

from exporter.artifacts import Checkpoint, Node
from exporter.weights.layout import Layout, Match, WeightSet
from exporter.weights.state_dicts import as_weights, child, is_module, own_names

__all__ = ["LAYOUT", "raw_weights"]

KEYS = ("model", "state_dict", "model_state_dict", "model_state", "net", "network", "module", "weights", "params", "raw")


_RATE = re.compile(r"ema_(0\.9\d*)_\d+\.")
"""guided-diffusion and its kin: ``ema_0.9999_100000.pt``."""
_EMA_NAME = re.compile(r"^ema_model_|-EMA\.")
"""ignite's file of the average alone, and NeMo's pair ``x.ckpt`` and ``x-EMA.ckpt``."""


def raw_weights(root: Node) -> WeightSet | None:
    """Return the raw weights under the first of the usual keys that holds any."""
    for key in KEYS:
        weights = as_weights(child(root, key), key)
        if weights is not None and "n_averaged" not in weights.tensors:
            return own_names(weights)
    return None


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise weights wherever they stand; the layout of last resort."""
    root = checkpoint.root
    bare = as_weights(root, "", remark=_named(checkpoint.path.name))
    if bare is not None:
        return Match("module" if is_module(root) else "state dict", raw=own_names(bare))
    raw = raw_weights(root)
    if raw is None:
        return None
    return Match("raw", raw=raw)


def _named(name: str) -> str:
    """Return what the name of the file says where nothing in it does."""
    rate = _RATE.match(name)
    if rate is not None:
        return f"the file's name says that this is an average with decay {rate[1]}, which the file itself cannot tell"
    return "the file's name says that this is an average, which the file itself cannot tell" if _EMA_NAME.search(name) else ""


LAYOUT = Layout("raw", (), read)
