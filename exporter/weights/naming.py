"""Giving tensors their names back: from the order of the model's parameters, or forward from the names of the raw weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from exporter.artifacts import Checkpoint, TensorRef, TensorSpec
from exporter.errors import LayoutError
from exporter.locations import Location
from exporter.weights.blend import Source
from exporter.weights.layout import Average, WeightSet

__all__ = ["fit_in_order", "forward_names", "list_as_weights", "name_in_order", "near_misses", "refuse_unexplained"]

_MAX_SHOWN = 8
_MAX_COMPARED, _MAX_COMPARED_LENGTH = 500, 200


def near_misses(name: str, names: Iterable[str]) -> list[str]:
    """Return the name of ``names`` that is most like ``name``, or none; of very many and very long ones some are compared."""
    import difflib

    known = [other[:_MAX_COMPARED_LENGTH] for other in itertools.islice(names, _MAX_COMPARED)]
    return difflib.get_close_matches(name[:_MAX_COMPARED_LENGTH], known, n=1)


_MAX_STATES = 10_000
"""Ways to be followed at once when groups are fitted into the order of a model; a file with more leaves the order open."""


def list_as_weights(items: Sequence[object], at: str) -> WeightSet | None:
    """Return the tensors of a list under ``[0]``, ``[1]``, ...; None where the list is empty or holds anything else."""
    tensors = {f"[{index}]": item for index, item in enumerate(items) if isinstance(item, TensorRef)}
    return WeightSet(at, tensors) if tensors and len(tensors) == len(items) else None


def name_in_order(checkpoint: Checkpoint, average: Average, raw: WeightSet | None, order: tuple[TensorSpec, ...] | None) -> Average:
    """Return a nameless average under the names of the model's parameters, any other average as it is.

    The number of tensors and every shape must be those of ``order``: a list that was filtered or sorted is never guessed at.

    Args:
        checkpoint: for the message.
        average: as the layout found it.
        raw: what the average lacks (buffers) is taken from here.
        order: name and shape of every parameter in the order of ``model.parameters()``; None where no model is known.

    Raises:
        LayoutError: there is no order (E219), or it does not fit (E220).
    """
    if not average.is_nameless:
        return average
    refs = tuple(average.weights.tensors.values())
    facts: dict[str, object] = {"file": checkpoint.path, "at": average.weights.at}
    if order is None:
        facts |= {"found": f"a list of {len(refs)} tensors", "meaning": "their names are known only to the order of the model's parameters"}
        help_text = "name the code that builds the model: [model] factory in exporter.toml"
        raise LayoutError("E219", "the average is a list without names, and no model is given", facts=facts, help=help_text)
    if average.named_by is not None:
        return _named_by(checkpoint, average, average.named_by(order), raw, len(order))
    if len(order) != len(refs):
        facts |= {"found": f"{len(refs)} tensors", "expected": f"{len(order)}, one for each parameter of the model"}
        help_text = "the list may hold trainable parameters only, or the factory's arguments differ from those of the training"
        raise LayoutError("E220", "the average is a list that does not fit the model's parameters", facts=facts, help=help_text)
    for index, (ref, spec) in enumerate(zip(refs, order, strict=True)):
        if ref.shape != spec.shape:
            facts |= {"at": f"{average.weights.at}[{index}]", "found": f"shape {ref.shape}", "expected": f"{spec.shape} of {spec.name}"}
            help_text = "give the factory the arguments of the training, and the version of the code that trained"
            raise LayoutError("E220", "the average is a list that does not fit the model's parameters", facts=facts, help=help_text)
    tensors = {spec.name: ref for spec, ref in zip(order, refs, strict=True)}
    copied = frozenset(raw.tensors) - frozenset(tensors) if raw is not None else frozenset()
    named = replace(average.weights, tensors=tensors)
    return replace(average, weights=named, copied=copied, is_nameless=False)


def _named_by(checkpoint: Checkpoint, average: Average, tensors: Mapping[str, Source] | None, raw: WeightSet | None, num_parameters: int) -> Average:
    if tensors is None:
        facts = {"file": checkpoint.path, "at": average.weights.at, "found": f"{len(average.weights.tensors)} tensors"}
        facts["expected"] = f"one for each of the model's {num_parameters} parameters, with its shape, in one order that fits"
        help_text = "give the optimizer model.named_parameters() in training: their names are then in the file"
        raise LayoutError("E220", "the average is a list that does not fit the model's parameters", facts=facts, help=help_text)
    copied = frozenset(raw.tensors) - frozenset(tensors) if raw is not None else frozenset()
    return replace(average, weights=replace(average.weights, tensors=tensors), copied=copied, is_nameless=False, named_by=None)


def fit_in_order(groups: Sequence[Sequence[tuple[int, ...] | None]], order: Sequence[TensorSpec]) -> list[str] | None:
    """Return the names of the groups' tensors, group after group, None where the shapes leave no order or more than one.

    Every group keeps the order of the model; the groups take turns, and names in between may belong to none. A single group of as
    many tensors as there are names is the model's own order.

    Args:
        groups: the shapes of each group's tensors; None where a shape is not known, which fits any.
        order: name and shape of what may be a parameter, in the order of the model.
    """
    spare = len(order) - sum(map(len, groups))
    if spare < 0:
        return None
    begin = (0,) * len(groups)
    ways: dict[tuple[int, ...], int] = {begin: 1}
    steps: list[dict[tuple[int, ...], int | None]] = []
    for place, spec in enumerate(order):
        reached: dict[tuple[int, ...], int] = {}
        came: dict[tuple[int, ...], int | None] = {}
        for state, number in ways.items():
            moves = [group for group, taken in enumerate(state) if taken < len(groups[group]) and groups[group][taken] in {None, spec.shape}]
            for move in (*moves, *([None] if place - sum(state) < spare else [])):
                after = state if move is None else (*state[:move], state[move] + 1, *state[move + 1 :])
                reached[after] = min(reached.get(after, 0) + number, 2)
                came[after] = move
        if len(reached) > _MAX_STATES:
            return None
        ways = reached
        steps.append(came)
    end = tuple(map(len, groups))
    if ways.get(end) != 1:
        return None
    names: list[list[str]] = [[] for _ in groups]
    state = end
    for spec, came in zip(reversed(order), reversed(steps), strict=True):
        move = came[state]
        if move is not None:
            names[move].append(spec.name)
            state = (*state[:move], state[move] - 1, *state[move + 1 :])
    return [name for group in names for name in reversed(group)]


def forward_names(
    path: Location, at: str, names: Iterable[str], mangle: Callable[[str], str], present: Iterable[str], *, reserved: Iterable[str] = ()
) -> dict[str, str]:
    """Return mangled name -> own name for every name of ``names`` whose mangled form is ``present``.

    A mangled name cannot be turned back, so the table is made forward, and refused where two names meet in one: the trainer lost
    one of the two tensors when it wrote the file.

    Args:
        path: of the checkpoint, for the message.
        at: where the mangled names stand, for the message.
        names: the model's own names.
        mangle: what the trainer does to a name.
        present: the mangled names that are in the file.
        reserved: mangled names that mean something else: counters of the average.

    Raises:
        LayoutError: two names meet in one, or one meets a reserved name (E221).
    """
    wanted, taken = frozenset(present), frozenset(reserved)
    table: dict[str, str] = {}
    for name in names:
        mangled = mangle(name)
        if mangled in taken or (mangled in wanted and mangled in table):
            rival = table.get(mangled, "a counter of the average")
            facts = {"file": path, "at": f"{at}{mangled}", "found": f"{rival} and {name}"}
            help_text = "the trainer wrote one over the other, so one average is lost: take the raw weights (--weights raw), or another checkpoint"
            raise LayoutError("E221", f"two tensors of the average were both written as {mangled!r}", facts=facts, help=help_text)
        if mangled in wanted:
            table[mangled] = name
    return table


def refuse_unexplained(path: Location, at: str, present: Mapping[str, object], table: Mapping[str, str]) -> None:
    """Refuse averaged tensors that no name of the raw weights explains.

    Raises:
        LayoutError: E222.
    """
    left = [name for name in present if name not in table]
    if left:
        shown = ", ".join(left[:_MAX_SHOWN]) + (f", ... {len(left) - _MAX_SHOWN} more" if len(left) > _MAX_SHOWN else "")
        facts = {"file": path, "at": at, "found": shown, "expected": "a tensor of the raw weights for each"}
        raise LayoutError("E222", f"the average has {len(left)} tensors that no raw name explains", facts=facts)
