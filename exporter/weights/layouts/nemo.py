"""NeMo's first EMA callback: a list without names in the callback's state, in the order of ``state_dict`` beside it.

The list holds every entry of the state dict, buffers and counters included, averaged like the rest. The decay is not in the file.
Later releases write a file of its own, ``x-EMA.ckpt``, which ``file_names.py`` reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from exporter.artifacts import Checkpoint
from exporter.errors import LayoutError
from exporter.weights.layout import Average, Layout, Match, WeightSet
from exporter.weights.layouts.fields import count
from exporter.weights.naming import list_as_weights
from exporter.weights.state_dicts import as_weights, child, own_names

__all__ = ["LAYOUT"]

STATE, CALLBACK, LIST = "state_dict", "EMA", "ema_weights"


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise the list ``ema_weights`` in the state of a callback called EMA."""
    callbacks = child(checkpoint.root, "callbacks")
    for key, state in callbacks.items() if isinstance(callbacks, Mapping) else ():
        items = child(state, LIST)
        if not isinstance(key, str) or not key.startswith(CALLBACK) or not isinstance(items, (list, tuple)):
            continue
        listed = list_as_weights(items, f"callbacks/{key}/{LIST}")
        raw = as_weights(child(checkpoint.root, STATE), STATE)
        if listed is not None and raw is not None:
            average = Average("ema", own_names(_in_order(checkpoint, listed, raw)), updates=count(child(state, "cur_step")))
            return Match("nemo", (replace(average, buffers="averaged"),), own_names(raw))
    return None


def _in_order(checkpoint: Checkpoint, listed: WeightSet, raw: WeightSet) -> WeightSet:
    """Return the list under the names of the state dict, which has the same order, number and shapes.

    Raises:
        LayoutError: it has not (E260).
    """
    found, expected = [ref.shape for ref in listed.tensors.values()], [ref.shape for ref in raw.tensors.values()]
    if found != expected:
        place = next((index for index, (one, other) in enumerate(zip(found, expected, strict=False)) if one != other), min(len(found), len(expected)))
        facts = {
            "file": checkpoint.path,
            "at": f"{listed.at}[{place}]",
            "found": f"{len(found)} tensors",
            "expected": f"{len(expected)} of state_dict",
        }
        problem = "the average is a list that does not fit the weights beside it"
        raise LayoutError("E260", problem, facts=facts, help="take the raw weights: --weights raw, of the state dict saved alone")
    return replace(listed, tensors=dict(zip(raw.tensors, listed.tensors.values(), strict=True)))


LAYOUT = Layout("nemo", ("callbacks/EMA/ema_weights",), read)
