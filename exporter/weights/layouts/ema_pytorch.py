"""ema-pytorch's EMA, and the trainers around it: ``online_model.`` and ``ema_model.`` in one flat dict with ``initted`` and ``step``.

Floating parameters and buffers are averaged; integer buffers are those from the start. ``step`` counts calls of ``update()``, of
which only every ``update_every``-th averages, after ``update_after_step``: neither they nor the decay are in the file. Without
``include_online_model`` the raw weights stand elsewhere in the file, if anywhere: denoising-diffusion writes them as ``model``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from exporter.artifacts import Checkpoint, Node
from exporter.weights.layout import Average, Layout, Match, WeightSet
from exporter.weights.layouts.fields import count
from exporter.weights.layouts.raw_only import raw_weights
from exporter.weights.state_dicts import as_weights, own_names

__all__ = ["LAYOUT"]

RAW, AVERAGE = "online_model.", "ema_model."
SIGNS = ("initted", "step")


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise ``ema_model.`` names beside ``initted`` and ``step``, at the top or under any key."""
    averages: list[Average] = []
    raw: WeightSet | None = None
    beside: list[WeightSet | None] = []
    for name, at, weights in _places(checkpoint.root):
        own = _behind(weights, RAW)
        if own is None:
            beside = beside or [raw_weights(checkpoint.root)]
            own = beside[0]
        own = own_names(own) if own is not None else None
        raw = raw or own
        average = _behind(weights, AVERAGE)
        if average is not None:
            calls = count(weights.tensors["step"])
            remark = f"{'an unknown number of' if calls is None else calls} calls of update(), of which by default every 10th averages"
            averages.append(Average(name, own_names(WeightSet(at, average.tensors, average.others, remark), like=own), buffers="averaged"))
    return Match("ema-pytorch", tuple(averages), raw) if averages else None


def _places(root: Node) -> Iterator[tuple[str, str, WeightSet]]:
    nodes: dict[str, Node] = {"": root}
    if isinstance(root, Mapping):
        nodes |= {key: node for key, node in root.items() if isinstance(key, str) and isinstance(node, Mapping)}
    for at, node in nodes.items():
        weights = as_weights(node, at)
        if weights is not None and all(sign in weights.tensors for sign in SIGNS):
            yield at or "ema_model", at, weights


def _behind(weights: WeightSet, prefix: str) -> WeightSet | None:
    tensors = {name.removeprefix(prefix): ref for name, ref in weights.tensors.items() if name.startswith(prefix)}
    others = {name.removeprefix(prefix): node for name, node in weights.others.items() if name.startswith(prefix)}
    return WeightSet(weights.at, tensors, others) if tensors else None


LAYOUT = Layout("ema-pytorch", ("ema_model.", "online_model."), read)
