"""Raw weights under the usual keys, a bare state dict, or a pickled module: the file as it is, with no average known."""

from __future__ import annotations

from exporter.artifacts import Checkpoint, Node
from exporter.weights.layout import Layout, Match, WeightSet
from exporter.weights.state_dicts import as_weights, child, is_module, own_names

__all__ = ["LAYOUT", "raw_weights"]

KEYS = ("model", "state_dict", "model_state_dict", "model_state", "net", "network", "module", "weights", "params", "raw")


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
    bare = as_weights(root, "")
    if bare is not None:
        return Match("module" if is_module(root) else "state dict", raw=own_names(bare))
    raw = raw_weights(root)
    if raw is None:
        return None
    return Match("raw", raw=raw)


LAYOUT = Layout("raw", (), read)
