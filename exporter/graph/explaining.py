"""What a person wants to see of a fold: the network before it, and the surroundings of a BatchNorm with what stood in the way.

Neither torch nor ONNX is needed: the sketch is taken of the abstract graph before it is planned on, since planning changes it.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

from exporter.artifacts import REMEDIES, Explanation, Folded, Neighbour, Refusal, Sketch, SketchNode
from exporter.artifacts.sketch import Part
from exporter.errors import ConfigError
from exporter.graph.abstract import AbstractGraph, BatchNorm, ConstantAffine, Linear, Operator, Value
from exporter.graph.through import Join, Sum

__all__ = ["explain", "sketch_of"]

_STEPS = 3
"""How many operators to show on either side, or more where the culprit is further away."""

_WIDTH = 5
"""How many producers or readers of one operator to show, culprits first."""

_SYMBOL = re.compile(r"s\d+")
_PASSING = {"passes", "sum", "concat"}
"""Parts that the planner looks through."""

_Where: TypeAlias = Literal["before", "itself", "beside", "behind"]


def sketch_of(graph: AbstractGraph) -> Sketch:
    """Return the operators of ``graph`` that data flow through, from the inputs on, in the order of execution."""
    nodes: list[SketchNode] = []
    places: dict[str, int] = {}
    for value in graph.values.values():
        if value.producer is None:
            if not value.is_constant and not value.storage:
                places[value.name] = len(nodes)
                nodes.append(SketchNode(value.label, "input", "input", _shape(value), is_output=value.is_output))
            continue
        operator = graph.operators[value.producer]
        reads = tuple(places[name] for name in dict.fromkeys(operator.inputs) if name in places and operator.name in graph.values[name].users)
        if reads:
            places[value.name] = len(nodes)
            part = _part(operator, len(reads))
            nodes.append(SketchNode(operator.module, operator.kind, part, _shape(value), reads, value.is_output, operator.source))
    return Sketch(tuple(nodes))


def explain(sketch: Sketch, folded: Sequence[Folded], refusals: Sequence[Refusal], pattern: str = "") -> tuple[Explanation, ...]:
    """Return what became of each BatchNorm whose name fits ``pattern``, an ``fnmatch`` pattern; of each that was kept where it is empty.

    Raises:
        ConfigError: no BatchNorm has such a name (E346).
    """
    names = [*(item.batch_norm for item in refusals), *(item.batch_norm for item in folded)]
    if pattern and not any(_fits(name, pattern) for name in names):
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
        facts = {"at": "--explain", "found": pattern, "expected": ", ".join(near) or "nothing: the network has no BatchNorm"}
        help_text = "quote patterns: --explain 'stages.*'; a model is named before --explain, or --explain=PATTERN is written"
        raise ConfigError("E346", "no BatchNorm has such a name", facts=facts, help=help_text)
    gone = {item.batch_norm for item in folded}
    surroundings = _Surroundings(sketch, gone)
    found: dict[str, Explanation] = {}
    for refusal in refusals:
        if not pattern or _fits(refusal.batch_norm, pattern):
            why = f"{refusal.reason.value}: {refusal.detail}" if refusal.detail else refusal.reason.value
            neighbours = surroundings.of(refusal.batch_norm, refusal.culprits, detail=refusal.detail)
            found[refusal.batch_norm] = Explanation(refusal.batch_norm, "kept", why, REMEDIES[refusal.reason], neighbours)
    for item in folded:
        if pattern and _fits(item.batch_norm, pattern):
            neighbours = surroundings.of(item.batch_norm, (), taker=item.producer)
            found[item.batch_norm] = Explanation(item.batch_norm, "folded", _done(item), "", neighbours)
    order = [node.module for node in sketch.nodes]
    return tuple(sorted(found.values(), key=lambda item: order.index(item.batch_norm) if item.batch_norm in order else len(order)))


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _done(item: Folded) -> str:
    where = {"back": "back into", "ahead": "ahead into", "beside": "into the branch beside it,", "constant": "computed ahead:"}[item.direction]
    return f"{where} {item.producer} ({item.pattern}), {item.num_channels} channels, largest scale {item.max_scale:.3g}"


def _part(operator: Operator, num_reads: int) -> Part:
    role = operator.role
    if isinstance(role, Linear):
        return "product"
    if isinstance(role, BatchNorm) or (isinstance(role, ConstantAffine) and role.is_batch_norm):
        return "batch_norm"
    if isinstance(role, ConstantAffine):
        return "affine" if role.lone is None else "scale"
    if isinstance(role, Sum) or (num_reads > 1 and operator.kind.rstrip("_") in {"add", "sub"}):
        return "sum"
    if isinstance(role, Join):
        return "concat"
    return "passes" if role is not None else "other"


def _shape(value: Value) -> str:
    """Return ``N x 64 x 8 x 8``; an axis without a name of its own is ``N`` where it is the first, else ``?``."""
    sizes = [("?" if axis else "N") if isinstance(size, str) and _SYMBOL.search(size) else str(size) for axis, size in enumerate(value.shape)]
    return " x ".join(sizes)


class _Surroundings:
    """Looks up what stands around a BatchNorm."""

    def __init__(self, sketch: Sketch, gone: set[str]) -> None:
        self._nodes = sketch.nodes
        self._gone = gone
        self._readers: list[list[int]] = [[] for _ in sketch.nodes]
        for place, node in enumerate(sketch.nodes):
            for read in node.reads:
                self._readers[read].append(place)

    def of(self, batch_norm: str, culprits: Sequence[str], *, detail: str = "", taker: str = "") -> tuple[Neighbour, ...]:
        """Return the neighbours of ``batch_norm``, those marked that ``culprits`` name, and the products called ``taker``.

        Other readers hang on what ``detail`` names of what they read, else on the first of it.
        """
        start = next((place for place, node in enumerate(self._nodes) if node.module == batch_norm and node.part in {"batch_norm", "affine"}), None)
        if start is None:
            start = next((place for place, node in enumerate(self._nodes) if node.module == batch_norm and node.part == "scale"), None)
        if start is None:
            return ()
        before, behind = self._seen(start, back=True), self._seen(start, back=False)
        beside: dict[int, int] = {}
        for place in sorted(before, key=lambda place: (self._nodes[place].label not in detail, before[place], place)):
            for reader in self._readers[place]:
                if reader not in before and reader != start:
                    beside.setdefault(reader, place)
        guilty = {place for place in (start, *before, *behind, *beside) if any(_is_called(self._nodes[place], name) for name in culprits)}
        takers = {place for place in (*before, *behind, *beside) if self._takes(place, taker)}
        wanted = guilty | takers
        others = [place for place in beside if place in wanted][:_WIDTH]
        roles: dict[int, tuple[_Where, int]] = {start: ("itself", 0)}
        roles |= {place: ("behind", step) for place, step in self._side(start, behind, wanted, back=False).items()}
        roles |= {
            place: ("before", step) for place, step in self._side(start, before, wanted | {beside[place] for place in others}, back=True).items()
        }
        roles |= {place: ("beside", before[beside[place]]) for place in others if place not in roles}
        numbers = {place: number for number, place in enumerate(sorted(roles))}
        return tuple(
            Neighbour(
                module=node.module,
                kind=node.kind,
                part=node.part,
                shape=node.shape,
                place=roles[place][0],
                step=roles[place][1],
                reads=tuple(numbers[read] for read in self._drawn_reads(place, roles[place][0], beside) if read in numbers),
                is_output=node.is_output,
                is_culprit=place in guilty,
                takes_it=place in takers,
                num_hidden=sum(other not in roles for other in self._further(place, roles[place][0])),
                source=node.source,
            )
            for place, node in ((place, self._nodes[place]) for place in numbers)
        )

    def _drawn_reads(self, place: int, where: _Where, beside: Mapping[int, int]) -> Sequence[int]:
        return (beside[place],) if where == "beside" else self._nodes[place].reads

    def _takes(self, place: int, taker: str) -> bool:
        node = self._nodes[place]
        return bool(taker) and node.part == "product" and taker == (node.module or node.kind)

    def _further(self, place: int, where: _Where) -> Iterable[int]:
        """Return what a drawing would show next to a node: what it reads on the way back, who reads it on the way ahead."""
        return {"before": self._nodes[place].reads, "itself": (), "beside": (), "behind": self._readers[place]}[where]

    def _next(self, place: int, *, back: bool) -> Sequence[int]:
        return self._nodes[place].reads if back else self._readers[place]

    def _seen(self, start: int, *, back: bool) -> dict[int, int]:
        """Return what the planner sees from ``start``, with its distance: up to the first operators that do not pass a map on."""
        found: dict[int, int] = {}
        border, distance = [start], 0
        while border:
            distance += 1
            near = dict.fromkeys(other for place in border for other in self._next(place, back=back) if other not in found)
            found.update(dict.fromkeys(near, distance))
            border = [place for place in near if self._nodes[place].part in _PASSING or self._nodes[place].module in self._gone]
        return found

    def _side(self, start: int, seen: Mapping[int, int], wanted: set[int], *, back: bool) -> dict[int, int]:
        """Return what to show on one side, with its distance: some steps, and the ways to what is wanted."""
        needed = {place for place in seen if place in wanted}
        for place in sorted(needed, key=lambda place: -seen[place]):
            while seen[place] > 1:
                place = next(other for other in self._next(place, back=not back) if seen.get(other) == seen[place] - 1)  # noqa: PLW2901 - a walk
                needed.add(place)
        found: dict[int, int] = {}
        border, distance = [start], 0
        while border:
            distance += 1
            near: list[int] = []
            for place in border:
                others = [other for other in self._next(place, back=back) if distance <= _STEPS or other in needed]
                others.sort(key=lambda other: (other not in needed, other))
                near += [other for other in others[:_WIDTH] if other not in found and other != start]
            found.update(dict.fromkeys(near, distance))
            border = list(dict.fromkeys(near))
        return found


def _is_called(node: SketchNode, culprit: str) -> bool:
    """Return whether a culprit is this operator, or a weight or statistic of it."""
    if culprit in {node.label, node.module or node.kind}:
        return True
    return bool(node.module) and node.part in {"product", "batch_norm"} and culprit.startswith(f"{node.module}.")
