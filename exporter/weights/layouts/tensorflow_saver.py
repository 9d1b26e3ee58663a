"""``tf.train.ExponentialMovingAverage`` in checkpoints of a Saver: the average of ``net/w`` is ``net/w/ExponentialMovingAverage``.

Whatever else has the name of a variable in front is a slot of an optimizer: ``net/w/Momentum``, ``net/w/Adam``, ``net/w/Adam_1``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from exporter.artifacts import Checkpoint, TensorRef
from exporter.weights.layout import Average, Layout, Match, WeightSet
from exporter.weights.layouts.fields import count
from exporter.weights.state_dicts import child

__all__ = ["LAYOUT"]

NAME = "ExponentialMovingAverage"
_SUFFIX = f"/{NAME}"
_STEP = "global_step"
_OF_TRAINING = re.compile(r"(.*/)?(global_step|beta[12]_power(_\d+)?)")


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise a TensorFlow checkpoint without an object graph."""
    variables = child(checkpoint.root, "variables")
    if checkpoint.container != "TensorFlow" or not isinstance(variables, Mapping) or child(checkpoint.root, "objects") is not None:
        return None
    tensors = {str(name): ref for name, ref in variables.items() if isinstance(ref, TensorRef)}
    averages = {name.removesuffix(_SUFFIX): ref for name, ref in tensors.items() if name.endswith(_SUFFIX)}
    raw = {
        name: ref
        for name, ref in tensors.items()
        if not name.endswith(_SUFFIX)
        and not _OF_TRAINING.fullmatch(name)
        and not any(above in tensors or above in averages for above in _above(name))
    }
    weights = WeightSet("variables", raw) if raw else None
    remarks: tuple[str, ...] = ()
    of_values = [name for name in averages if name not in raw] if raw.keys() & averages.keys() else []
    if of_values:
        remarks = (f"{len(of_values)} averages of values that are no variables, such as {of_values[0]}, are left out",)
        averages = {name: ref for name, ref in averages.items() if name in raw}
    found = WeightSet(f"variables/*{_SUFFIX}", averages)
    updates = count(tensors.get(_STEP))
    average = Average(NAME, found, updates=updates, buffers="may be absent", copied=frozenset(raw) - frozenset(averages))
    return Match("tensorflow-saver", (average,) if averages else (), weights, remarks=remarks)


def _above(name: str) -> list[str]:
    """Return the names that ``name`` begins with, step by step: ``a/b/c`` has ``a`` and ``a/b``."""
    steps = name.split("/")[:32]
    return ["/".join(steps[:length]) for length in range(1, len(steps))]


LAYOUT = Layout("tensorflow-saver", (_SUFFIX,), read)
"""TensorFlow 1, and its compatibility mode."""
