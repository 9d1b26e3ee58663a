"""torch's ``AveragedModel``: every name behind ``module.``, and the counter ``n_averaged``, under any key or at the top.

The first update copies the weights. With ``use_buffers=False`` buffers are copied at every update, with ``True`` they are
averaged; either way the copy holds them all. The decay is not in the file.
"""

from __future__ import annotations

from collections.abc import Mapping

from exporter.artifacts import Checkpoint, Node
from exporter.weights.health import Schedule
from exporter.weights.layout import Average, Layout, Match, WeightSet
from exporter.weights.layouts.fields import count
from exporter.weights.layouts.raw_only import raw_weights
from exporter.weights.state_dicts import as_weights, own_names

__all__ = ["LAYOUT", "average_from_averaged_model"]

COUNTER = "n_averaged"
TOP = "averaged"


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise ``n_averaged`` beside names that all begin with ``module.``."""
    root = checkpoint.root
    raw = raw_weights(root)
    nodes: dict[str, Node] = {TOP: root}
    if isinstance(root, Mapping):
        nodes |= {key: node for key, node in root.items() if isinstance(key, str)}
    found = [average_from_averaged_model(node, name, "" if name == TOP and node is root else name, raw) for name, node in nodes.items()]
    averages = tuple(average for average in found if average is not None)
    return Match("torch-averaged-model", averages, raw) if averages else None


def average_from_averaged_model(node: Node, name: str, at: str, raw: WeightSet | None) -> Average | None:
    """Return the average that the state dict (or pickled object) of an AveragedModel holds, None where ``node`` is none."""
    weights = as_weights(node, at)
    if weights is None or COUNTER not in weights.tensors:
        return None
    inner = {key: ref for key, ref in weights.tensors.items() if key != COUNTER}
    if not inner or not all(key.startswith("module.") for key in inner):
        return None
    own = own_names(WeightSet(at, inner, weights.others), wrappers=1, like=raw)
    return Average(name, own, Schedule("first copies"), count(weights.tensors[COUNTER]))


LAYOUT = Layout("torch-averaged-model", ("n_averaged",), read)
