"""Lightning's averaging callbacks: the plainly named copy is the average.

``WeightAveraging`` and ``EMAWeightAveraging`` save the average as ``state_dict``, the raw weights as ``current_model_state`` and
the counter in ``averaging_state``. When ``fit()`` ends the average is copied over the raw weights, so that a file saved later
holds it twice. ``StochasticWeightAveraging`` keeps its average in its own state while it trains, and ``state_dict`` is raw. Names are those of the
LightningModule: ``net.`` and the like in front of the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from exporter.artifacts import Checkpoint, Node
from exporter.weights.health import Schedule
from exporter.weights.layout import Average, Layout, Match
from exporter.weights.layouts.fields import count
from exporter.weights.state_dicts import as_weights, child, own_names, same_values

__all__ = ["LAYOUT"]

STATE, CURRENT, COUNTERS = "state_dict", "current_model_state", "averaging_state"
SWA, SWA_STATE = "StochasticWeightAveraging", "average_model_state"

_AFTER_FIT = "saved after fit(): the average was copied over the raw weights, and both copies are the average"
_STALE = "parameters only are averaged; BatchNorm's statistics are those from before averaging until the last epoch estimates them anew"


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise ``state_dict`` with ``current_model_state``, or with the state of StochasticWeightAveraging."""
    return _weight_averaging(checkpoint.root) or _stochastic(checkpoint.root)


def _weight_averaging(root: Node) -> Match | None:
    raw = as_weights(child(root, CURRENT), CURRENT)
    average = as_weights(child(root, STATE), STATE) if raw is not None else None
    if average is None or raw is None:
        return None
    raw = own_names(raw)
    average = own_names(average, like=raw)
    updates = count(child(child(root, COUNTERS), "n_averaged"))
    candidate = Average(STATE, average, Schedule("first copies"), updates, "averaged")
    if (updates is None or updates > 1) and same_values(average, raw):
        return Match("lightning", (candidate,), remarks=(_AFTER_FIT,))
    return Match("lightning", (candidate,), raw)


def _stochastic(root: Node) -> Match | None:
    for at, state in _states(root):
        average = as_weights(child(state, SWA_STATE), f"{at}/{SWA_STATE}", remark=_STALE)
        raw = as_weights(child(root, STATE), STATE) if average is not None else None
        if raw is None or average is None:
            continue
        raw = own_names(raw)
        candidate = Average("swa", own_names(average, like=raw), Schedule("mean"), count(child(state, "n_averaged")), "stale")
        return Match("lightning", (candidate,), raw)
    return None


def _states(root: Node) -> Iterator[tuple[str, Node]]:
    callbacks = child(root, "callbacks")
    for key, state in callbacks.items() if isinstance(callbacks, Mapping) else ():
        if isinstance(key, str) and key.startswith(SWA):
            yield f"callbacks/{key}", state


LAYOUT = Layout("lightning", (CURRENT, SWA_STATE), read, under="state_dict", beside=("pytorch-lightning_version",))
