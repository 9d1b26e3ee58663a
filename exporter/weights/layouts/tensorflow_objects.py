"""``tf.train.Checkpoint``: variables by their place in a graph of objects, and averages that an optimizer keeps of them.

The name of a weight is the full name that the graph gives it (``net/conv/kernel``), not its place (``optimizer/_trainable_variables/0``).
Keras' averages (``use_ema=True``) stand in the optimizer's list ``_model_variables_moving_average``; other optimizers keep them in a slot
called ``average``. What may have been exchanged, or begun with zeros, without a trace in the file is taken only by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from exporter.artifacts import Checkpoint, Node, TensorRef
from exporter.weights.health import Schedule
from exporter.weights.layout import Average, Layout, Match, WeightSet
from exporter.weights.layouts.fields import count
from exporter.weights.state_dicts import child

__all__ = ["LAYOUT"]

NAME = "tensorflow-objects"
_AVERAGES = "_model_variables_moving_average"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLOT = "average"
_MAX_OPTIMIZERS = 64
_MAX_PLACE = 300
_ITERATIONS = ("_iterations", "iter", "iterations")
_KERAS_3 = "_trainable_variables"
_SWAPPED = "if SwapEMAWeights wrote the file, the plain weights are the average and these the raw ones: the file cannot tell"
_FROM_ZERO = (
    "Model Garden's average began with zeros, TensorFlow Addons' with the weights, which the file cannot tell: "
    "after a hundred updates with the decay that grows, the default, it makes no difference"
)


@dataclass(frozen=True, slots=True)
class _Object:
    """One object of the graph; ``value`` where it is a variable that the checkpoint has."""

    children: Mapping[str, int]
    slots: tuple[tuple[int, str, int], ...]
    full_name: str
    key: str
    value: TensorRef | None


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise a TensorFlow checkpoint with an object graph."""
    described, variables = child(checkpoint.root, "objects"), child(checkpoint.root, "variables")
    if checkpoint.container != "TensorFlow" or not isinstance(described, list):
        return None
    objects = [_object(node, variables) for node in described]
    optimizers = [index for index, found in enumerate(objects) if _is_optimizer(found)]
    if len(optimizers) > _MAX_OPTIMIZERS:
        return Match(NAME, refusal=f"it has {len(optimizers)} optimizers, more than any trainer has")
    theirs = {number for index in optimizers for number in _own(objects, index)}
    counters = {n for n in objects[0].children.values() if (ref := objects[n].value) is not None and ref.num_elements == 1 and not ref.shape}
    weights = [n for n, found in enumerate(objects) if found.value is not None and n not in theirs and n not in counters]
    names = _names(objects, weights)
    raw = WeightSet("variables", {names[n]: ref for n in weights if (ref := objects[n].value) is not None})
    places = _places(objects)
    averages = tuple(average for index in optimizers for average in _averages(objects, index, names, raw, places.get(index, f"object {index}")))
    return Match(NAME, averages, raw if raw.tensors else None)


def _object(node: Node, variables: Node) -> _Object:
    children, slots, held = child(node, "children"), child(node, "slots"), child(node, "variables")
    numbers = {name: number for name, number in children.items() if isinstance(number, int)} if isinstance(children, Mapping) else {}
    pairs = tuple(_slot(slot) for slot in slots) if isinstance(slots, list) else ()
    for variable in held if isinstance(held, list) else ():
        key = str(child(variable, "key"))
        ref = child(variables, key)
        if isinstance(ref, TensorRef):
            return _Object(numbers, pairs, str(child(variable, "full_name") or ""), key, ref)
    return _Object(numbers, pairs, "", "", None)


def _slot(slot: Node) -> tuple[int, str, int]:
    of, variable = child(slot, "of"), child(slot, "variable")
    return of if isinstance(of, int) else 0, str(child(slot, "slot")), variable if isinstance(variable, int) else 0


def _is_optimizer(found: _Object) -> bool:
    children = found.children
    return bool(found.slots) or {"_variables", "_iterations"} <= set(children) or {"iter", "learning_rate"} <= set(children)


def _own(objects: list[_Object], index: int) -> Iterator[int]:
    """Yield the numbers of the variables that belong to an optimizer."""
    found = objects[index]
    yield from found.children.values()
    yield from (variable for _, _, variable in found.slots)
    if "_variables" in found.children:
        yield from objects[found.children["_variables"]].children.values()
    if _AVERAGES in found.children:
        yield from objects[found.children[_AVERAGES]].children.values()


def _names(objects: list[_Object], weights: list[int]) -> dict[int, str]:
    """Return the full names; where two variables have the same one or none, the places of all in the graph."""
    full = {n: objects[n].full_name for n in weights}
    if "" not in full.values() and len(set(full.values())) == len(full):
        return full
    return {n: objects[n].key.removesuffix(_VALUE) for n in weights}


def _places(objects: list[_Object]) -> dict[int, str]:
    """Return the shortest path to every object from the root, as far as it is one to read."""
    places, todo = {0: ""}, [0]
    for index in todo:
        for name, number in objects[index].children.items():
            if number not in places and len(places[index]) + len(name) < _MAX_PLACE:
                places[number] = f"{places[index]}/{name}" if places[index] else name
                todo.append(number)
    return places


def _averages(objects: list[_Object], index: int, names: Mapping[int, str], raw: WeightSet, place: str) -> Iterator[Average]:
    optimizer = objects[index]
    updates = next((count(objects[optimizer.children[key]].value) for key in _ITERATIONS if key in optimizer.children), None)
    by_list = _of_keras(objects, optimizer, names)
    if by_list:
        is_keras_3 = _KERAS_3 in optimizer.children
        weights = WeightSet(f"{place}/{_AVERAGES}", by_list, remark=_SWAPPED if is_keras_3 else "")
        schedule = Schedule("first copies" if is_keras_3 else "constant")
        yield _average(place, weights, schedule, updates, raw, on_request=is_keras_3)
    slots = {
        names[of]: ref for of, slot, variable in optimizer.slots if slot == _SLOT and of in names and (ref := objects[variable].value) is not None
    }
    if slots:
        yield _average(_SLOT, WeightSet(f"{place}/{_SLOT}", slots, remark=_FROM_ZERO), Schedule(), updates, raw, on_request=True)


def _average(name: str, weights: WeightSet, schedule: Schedule, updates: int | None, raw: WeightSet, *, on_request: bool) -> Average:
    return Average(name, weights, schedule, updates, "may be absent", frozenset(raw.tensors) - frozenset(weights.tensors), on_request=on_request)


def _of_keras(objects: list[_Object], optimizer: _Object, names: Mapping[int, str]) -> dict[str, TensorRef]:
    """Return the averages under the names of their weights: in Keras 3 by their place in two lists, in tf-keras by their full names."""
    averages = _listed(objects, optimizer, _AVERAGES)
    if _KERAS_3 in optimizer.children:
        trained = _listed(objects, optimizer, _KERAS_3)
        pairs = list(zip(trained, averages, strict=False)) if len(trained) == len(averages) else []
    else:
        numbers = {name: number for number, name in names.items()}
        pairs = [(numbers.get(objects[n].full_name.partition(f"/{_SLOT}/")[2], -1), n) for n in averages]
    found = {names[of]: ref for of, n in pairs if of in names and (ref := objects[n].value) is not None}
    return found if len(found) == len(averages) else {}


def _listed(objects: list[_Object], owner: _Object, key: str) -> list[int]:
    """Return the objects of a list, in order; nothing where one is missing."""
    children = objects[owner.children[key]].children if key in owner.children else {}
    return [children[str(i)] for i in range(len(children))] if all(str(i) in children for i in range(len(children))) else []


LAYOUT = Layout(NAME, (_AVERAGES, ".OPTIMIZER_SLOT/*/average"), read)
"""Keras 3, tf-keras, and optimizers with a slot for the average."""
