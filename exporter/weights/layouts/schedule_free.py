"""schedulefree: the average is computed from the weights ``y`` and the optimizer's ``z``, unless the file was saved after ``optimizer.eval()``.

In train mode the model holds ``y = beta x + (1 - beta) z``, where gradients are taken; the average ``x`` stands nowhere. The optimizer
counts its parameters, so their names come from the order of the model: that of the state dict without buffers, as far as counts
and shapes leave no choice, or of the model itself. The reference implementations keep ``x`` beside ``z``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from exporter.artifacts import Checkpoint, Node, TensorRef, TensorSpec, walk
from exporter.weights.blend import Blend, Source, is_blendable
from exporter.weights.health import Schedule
from exporter.weights.layout import Average, Layout, Match, WeightSet
from exporter.weights.layouts.fields import count, number
from exporter.weights.layouts.raw_only import raw_weights
from exporter.weights.naming import fit_in_order
from exporter.weights.state_dicts import child

__all__ = ["LAYOUT"]

NAME = "schedule-free"
SIGNS = ("weight_sum", "lr_max")
_WRAPPED = "ScheduleFreeWrapper writes neither its momentum nor its mode: these weights are the average only if optimizer.eval() came before saving"
_EVALUATED = "saved after optimizer.eval(): the weights are the average already"
_TRAINED = "y of the schedule-free optimizer: where it takes gradients, not the average"


@dataclass(frozen=True, slots=True)
class _Parameter:
    """What the optimizer knows of one parameter; ``z`` is None where it never had a gradient."""

    beta: float
    z: TensorRef | None
    x: TensorRef | None


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise an optimizer whose groups have ``weight_sum`` and ``lr_max``, and whose states have ``z``."""
    found = [(at, node) for at, node in walk(checkpoint.root) if isinstance(node, dict) and _is_schedule_free(node)]
    raw = raw_weights(checkpoint.root)
    if not found or raw is None:
        return None
    if len(found) > 1:
        return _refuse(f"{len(found)} schedule-free optimizers: {', '.join(at for at, _ in found)}")
    at, optimizer = found[0]
    groups = _groups(optimizer)
    parameters = [[_parameter(group, state) for state in states] for group, states in groups]
    modes = {child(group, "train_mode") for group, _ in groups}
    updates = count(child(groups[0][0], "k"))
    if len(modes) > 1:
        return _refuse("some groups of the optimizer are in train mode and others are not")
    has_x = any(parameter.x is not None for group in parameters for parameter in group)
    if modes == {None} and not has_x and child(groups[0][0], "weight_lr_power") is None:
        return Match(NAME, (), replace(raw, remark=_WRAPPED))
    if modes == {False} or (modes == {None} and not has_x):
        average = Average(NAME, replace(raw, remark=_EVALUATED), Schedule("mean"), updates)
        return Match(NAME, (average,), remarks=(_EVALUATED,))
    if has_x:
        return _trained(raw, parameters, groups, at, updates)
    if any(not 0.0 < parameter.beta <= 1.0 for group in parameters for parameter in group):
        return _refuse("saved in train mode, and the optimizer does not say its beta")
    return _trained(raw, parameters, groups, at, updates)


def _trained(raw: WeightSet, parameters: list[list[_Parameter]], groups: list[tuple[Node, list[Node]]], at: str, updates: int | None) -> Match:
    """Return the average under names that the optimizer wrote down, or the order of the state dict gives, or only the model can."""
    first: dict[object, str] = {}
    same = {name: first.setdefault(_place(source), name) for name, source in raw.tensors.items()}

    def sources(names: Mapping[str, _Parameter]) -> dict[str, Source]:
        own = {name: names.get(name) or names.get(same[name]) for name in raw.tensors}
        return {name: _average(raw.tensors[name], parameter) for name, parameter in own.items() if parameter is not None}

    def named(order: Sequence[TensorSpec]) -> dict[str, Source] | None:
        known = [spec for spec in order if spec.name in raw.tensors]
        shapes = [[None if parameter.z is None else parameter.z.shape for parameter in group] for group in parameters]
        fitted = fit_in_order(shapes, known) if len(known) == len(order) else None
        return sources(dict(zip(fitted, (p for group in parameters for p in group), strict=True))) if fitted is not None else None

    written = [name for group, _ in groups for name in _names(group)]
    if len(written) == sum(map(len, parameters)) and set(written) <= set(raw.tensors):
        tensors: dict[str, Source] | None = sources(dict(zip(written, (p for group in parameters for p in group), strict=True)))
    else:
        tensors = named(
            [TensorSpec(name, source.shape, source.dtype) for name, source in raw.tensors.items() if _may_be_parameter(same, name, source)]
        )
    place, schedule = f"{raw.at} and {at}", Schedule("mean")
    raw = replace(raw, remark=_TRAINED)
    if tensors is not None:
        weights = WeightSet(place, tensors, remark="computed from y and z")
        return Match(NAME, (Average(NAME, weights, schedule, updates, copied=frozenset(raw.tensors) - frozenset(tensors)),), raw)
    listed = {f"[{index}]": p.z for index, p in enumerate(p for group in parameters for p in group) if p.z is not None}
    return Match(NAME, (Average(NAME, WeightSet(place, listed), schedule, updates, is_nameless=True, named_by=named),), raw)


def _average(y: Source, parameter: _Parameter) -> Source:
    """Return x for one parameter: as it was saved, or ``y / beta + (1 - 1 / beta) z``, or y where z never left it."""
    if parameter.x is not None:
        return parameter.x
    if parameter.z is None or not isinstance(y, TensorRef) or not (is_blendable(y.dtype) and is_blendable(parameter.z.dtype)):
        return y
    return Blend(((1 / parameter.beta, y), (1 - 1 / parameter.beta, parameter.z)), y.dtype)


def _is_schedule_free(node: Node) -> bool:
    groups, states = child(node, "param_groups"), child(node, "state")
    if not isinstance(groups, list) or not groups or not isinstance(states, Mapping):
        return False
    signed = all(isinstance(group, Mapping) and all(sign in group for sign in SIGNS) for group in groups)
    return signed and any(isinstance(child(state, "z"), TensorRef) for state in states.values())


def _groups(optimizer: Node) -> list[tuple[Node, list[Node]]]:
    """Return each group with the states of its parameters, in its order."""
    groups, states = child(optimizer, "param_groups"), child(optimizer, "state")
    listed = [(group, child(group, "params")) for group in groups] if isinstance(groups, list) else []
    return [(group, [states.get(index) for index in _indices(params)] if isinstance(states, Mapping) else []) for group, params in listed]


def _indices(params: Node) -> list[int]:
    return [index for index in params if type(index) is int] if isinstance(params, (list, tuple)) else []


def _names(group: Node) -> list[str]:
    """Return the names that torch writes where the optimizer was given ``named_parameters()``."""
    names = child(group, "param_names")
    return [name for name in names if isinstance(name, str)] if isinstance(names, (list, tuple)) else []


def _parameter(group: Node, state: Node) -> _Parameter:
    betas, momentum = child(group, "betas"), child(group, "momentum")
    beta = number(betas[0] if isinstance(betas, (list, tuple)) and betas else momentum)
    z, x = child(state, "z"), child(state, "x")
    return _Parameter(beta or 0.0, z if isinstance(z, TensorRef) else None, x if isinstance(x, TensorRef) else None)


def _may_be_parameter(same: Mapping[str, str], name: str, source: Source) -> bool:
    """Return whether a name may be a parameter's: no statistic of BatchNorm, no counter, and the first of tied ones."""
    return same[name] == name and is_blendable(source.dtype) and name.rpartition(".")[2] not in {"running_mean", "running_var"}


def _place(source: Source) -> object:
    return (source.storage, source.offset, source.shape, source.strides) if isinstance(source, TensorRef) and source.num_elements else id(source)


def _refuse(reason: str) -> Match:
    return Match(NAME, refusal=reason, remarks=(f"not baked: {reason}",))


LAYOUT = Layout(NAME, ("param_groups/[0]/weight_sum",), read)
