"""mmcv's EMAHook (mmdetection 2, mmsegmentation 0): raw weights in buffers ``ema_...``, the average under the plain names.

The hook registers for every parameter ``a.b.weight`` a buffer ``ema_a_b_weight`` and swaps the two when it saves. Dots become
underscores, which cannot be turned back: names are rebuilt forward from the plain ones. Buffers such as BatchNorm's statistics
have no twin and are raw. The decay is not in the file.
"""

from __future__ import annotations

from collections.abc import Mapping

from exporter.artifacts import Checkpoint
from exporter.weights.blend import Source
from exporter.weights.layout import Average, Layout, Match, WeightSet
from exporter.weights.naming import forward_names
from exporter.weights.state_dicts import as_weights, child, own_names, with_tied

__all__ = ["LAYOUT"]

STATE = "state_dict"


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise ``meta`` and a ``state_dict`` in which ``ema_<name with underscores>`` stands beside plain names."""
    root = checkpoint.root
    if not isinstance(child(root, "meta"), Mapping):
        return None
    weights = as_weights(child(root, STATE), STATE)
    if weights is None:
        return None
    tensors = weights.tensors
    twins = {_mangled(name) for name in tensors if _mangled(name) in tensors and _same_kind(tensors[_mangled(name)], tensors[name])}
    if not twins:
        return None
    plain = [name for name in tensors if name not in twins]
    table = forward_names(checkpoint.path, f"{STATE}/", plain, _mangled, twins)
    whole = own_names(WeightSet(STATE, {name: tensors[name] for name in plain}, weights.others))
    averaged = {id(tensors[name]) for name in table.values()}
    average = {name: ref for name, ref in whole.tensors.items() if id(ref) in averaged}
    copied = frozenset(whole.tensors) - frozenset(average)
    written = WeightSet(STATE, {name: tensors[name] for name in plain})
    trained = WeightSet(STATE, {own: tensors[mangled] for mangled, own in table.items()})
    raw = {**written.tensors, **with_tied(trained, written).tensors}
    remark = "mmcv swaps when it saves: the plain names are the average, the buffers `ema_...` the raw weights"
    candidate = Average(STATE, WeightSet(STATE, average, whole.others), copied=copied)
    return Match("mmcv", (candidate,), own_names(WeightSet(STATE, raw, weights.others)), remarks=(remark,))


def _mangled(name: str) -> str:
    return f"ema_{name.replace('.', '_')}"


def _same_kind(buffer: Source, plain: Source) -> bool:
    return (buffer.shape, buffer.dtype) == (plain.shape, plain.dtype)


LAYOUT = Layout("mmcv", ("ema_<name with _>",), read, under="state_dict")
