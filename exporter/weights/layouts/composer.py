"""composer's EMA: ``state.model`` and the entry ``EMA`` of ``state.algorithms``, and a flag that says which of them is the average.

While ``ema_weights_active`` is set, as it is whenever the trainer saves, the two copies are swapped: ``state.model`` is the average
and ``ema_model`` the raw weights. ``ema_model`` holds the parameters that require gradients and the buffers; what it lacks is
frozen and the same in both. The half-life is not in the file.
"""

from __future__ import annotations

from dataclasses import replace

from exporter.artifacts import Checkpoint, Node
from exporter.weights.layout import Average, Layout, Match, WeightSet
from exporter.weights.state_dicts import as_weights, child, own_names, with_tied

__all__ = ["LAYOUT"]

MODEL, ALGORITHMS = "state/model", "state/algorithms"


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise the entry ``EMA`` of ``state.algorithms`` with ``ema_model`` and ``ema_weights_active``."""
    state = child(checkpoint.root, "state")
    model = as_weights(child(state, "model"), MODEL)
    entry = _entry(child(state, "algorithms"))
    active = child(entry, "ema_weights_active")
    other = _ema_model(child(entry, "ema_model"))
    if model is None or other is None or not isinstance(active, bool):
        return None
    model = own_names(model)
    other = own_names(other, like=model)
    if active:
        raw = replace(other, tensors={**model.tensors, **with_tied(other, model).tensors})
        remark = "saved with the average in the model: `state.model` is the average, `ema_model` the raw weights"
        return Match("composer", (Average("model", model, buffers="averaged"),), raw, remarks=(remark,))
    frozen = frozenset(model.tensors) - frozenset(other.tensors)
    return Match("composer", (Average("ema_model", other, buffers="averaged", copied=frozen),), model)


def _entry(algorithms: Node) -> Node:
    for entry in algorithms if isinstance(algorithms, (list, tuple)) else ():
        if isinstance(entry, (list, tuple)) and len(entry) == 2 and entry[0] == "EMA":
            return entry[1]
    return None


def _ema_model(node: Node) -> WeightSet | None:
    at = f"{ALGORITHMS}/EMA/ema_model"
    parameters = as_weights(child(node, "named_parameters_dict"), at)
    if parameters is None:
        return None
    buffers = as_weights(child(node, "named_buffers_dict"), at)
    return parameters if buffers is None else WeightSet(at, {**parameters.tensors, **buffers.tensors}, {**parameters.others, **buffers.others})


LAYOUT = Layout("composer", ("state.algorithms",), read)
