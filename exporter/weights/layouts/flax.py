"""Flax's trees in MessagePack files: ``params`` and its averages, under names that are paths of the tree: ``params/conv/kernel``.

The names are those of ``flax.traverse_util.flatten_dict(variables, sep="/")``, so that the baked file turns back into what
``model.apply`` takes. The average stands under a key of the user's (``ema_params``, ``ema``), or is the state of ``optax.ema`` over the
parameters: fields ``ema`` and ``count``, begun with zeros. Averages in the optimizer's own state are averages of gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from exporter.artifacts import Checkpoint, Node, TensorRef
from exporter.errors import LayoutError
from exporter.weights.health import Schedule
from exporter.weights.layout import Average, Layout, Match, WeightSet
from exporter.weights.layouts.fields import count
from exporter.weights.state_dicts import child

__all__ = ["LAYOUT"]

NAME = "flax"
PARAMS = "params"
KEYS = ("ema_params", "params_ema", "ema", "ema_variables", "ema_state", "average_params", "polyak_params")
_STATISTICS = "batch_stats"
_OPTAX = frozenset({"count", "ema"})
_OPTIMIZERS = frozenset({"opt_state", "optimizer", "optimizer_state", "tx"})


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise a tree with ``params``, at the top or one level below, and the averages beside it; or a tree of parameters alone."""
    root = checkpoint.root
    if checkpoint.container != "Flax msgpack" or not isinstance(root, Mapping):
        return None
    places = [("", root), *((f"{key}/", node) for key, node in root.items() if isinstance(node, Mapping) and key not in _OPTIMIZERS)]
    prefix, holder = next(((at, node) for at, node in places if any(_tensors(child(node, PARAMS), ""))), ("", None))
    if holder is None:
        tensors = _named(root, "")
        return Match(NAME, raw=WeightSet("", tensors)) if tensors else None
    raw = WeightSet(f"{prefix}{PARAMS}", _variables(holder[PARAMS]) | _named(child(holder, _STATISTICS), f"{_STATISTICS}/"))
    found = {average.weights.at: average for at, node in {"": root, prefix: holder}.items() for average in _averages(node, at, raw)}
    return Match(NAME, tuple(found.values()), raw)


def _averages(holder: Mapping[object, Node], prefix: str, raw: WeightSet) -> Iterator[Average]:
    for key, node in holder.items():
        name, at = str(key), f"{prefix}{key}"
        if not isinstance(node, Mapping) or key in _OPTIMIZERS:
            continue
        if frozenset(node) == _OPTAX:
            tensors = _variables(node["ema"])
            if {n: ref.shape for n, ref in tensors.items()}.items() <= {n: ref.shape for n, ref in raw.tensors.items()}.items() and tensors:
                weights, copied = WeightSet(f"{at}/ema", tensors), frozenset(raw.tensors) - frozenset(tensors)
                schedule = Schedule("constant")
                yield Average(name, weights, schedule, count(node["count"]), "may be absent", copied, zero_initialised=True)
        elif key in KEYS and (tensors := _variables(node)):
            copied = frozenset(n for n in raw.tensors if n.startswith(f"{_STATISTICS}/")) - frozenset(tensors)
            yield Average(name, WeightSet(at, tensors), Schedule(), None, "may be absent", copied)


def _variables(tree: Node) -> dict[str, TensorRef]:
    """Return the tensors of a tree of parameters, or of a tree of collections one of which is ``params``."""
    return _named(tree, "" if child(tree, PARAMS) is not None else f"{PARAMS}/")


def _named(tree: Node, prefix: str) -> dict[str, TensorRef]:
    named: dict[str, TensorRef] = {}
    for name, ref in _tensors(tree, prefix):
        if name in named:
            facts = {"file": ref.storage.path, "found": f"{named[name].storage.key} and {ref.storage.key}"}
            raise LayoutError("E216", f"two tensors would both be called {name!r}", facts=facts)
        named[name] = ref
    return named


def _tensors(node: Node, prefix: str) -> Iterator[tuple[str, TensorRef]]:
    for key, value in node.items() if isinstance(node, Mapping) else ():
        if isinstance(value, TensorRef):
            yield f"{prefix}{key}", value
        else:
            yield from _tensors(value, f"{prefix}{key}/")


LAYOUT = Layout(NAME, KEYS, read)
"""Flax, with averages kept by hand or by optax."""
