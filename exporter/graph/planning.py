"""Decide, for every BatchNorm of a graph, how it is folded or why it is kept."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from exporter.artifacts import Folded, Refusal, RefusalReason
from exporter.config import FoldConfig
from exporter.graph.abstract import AbstractGraph, Operator
from exporter.graph.algebra import Float64
from exporter.graph.attempts import Attempt, attempt_of, num_not_finite
from exporter.graph.rewrites import REWRITES, Constants, Copy, LinearNumbers, Rewrite, Rewritten
from exporter.graph.rewrites.contract import Bypass, linear_of
from exporter.graph.rewrites.objections import affine_of

__all__ = ["Copy", "NewNumbers", "Plan", "make_plan"]


@dataclass(frozen=True, slots=True, eq=False)
class NewNumbers:
    """New numbers of one linear operator; float64, not yet rounded.

    Attributes:
        bias: None stays absent.
        border: a constant that is added to the output, of shape ``(1, outputs, *spatial)``.
        ones: the weight of one further input channel of each group, behind the others, that is one everywhere and padded with zeros
            like them; of shape ``(outputs, 1, *kernel)``, also for a transposed convolution.
    """

    operator: str
    weight: Float64
    bias: Float64 | None
    border: Float64 | None = None
    ones: Float64 | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, and what was decided; every BatchNorm of the graph is in ``folded`` or in ``refusals``.

    Attributes:
        copies: operators that there are twice from now on; made first, in order.
        numbers: new weights and biases.
        bypasses: operators that go, in order, each with the value that is read in place of its output.
        attempts: what fitted the graph around a BatchNorm, in order, whether its numbers allowed it or not.
        num_affine: folds of products and sums with constants that nobody calls a BatchNorm.
    """

    numbers: tuple[NewNumbers, ...]
    bypasses: tuple[Bypass, ...]
    folded: tuple[Folded, ...]
    refusals: tuple[Refusal, ...]
    num_affine: int = 0
    copies: tuple[Copy, ...] = ()
    attempts: tuple[Attempt, ...] = ()


def make_plan(graph: AbstractGraph, constants: Constants, config: FoldConfig) -> Plan:
    """Plan the folds of ``graph``, which is changed on the way: folded BatchNorms leave it.

    Each rewrite is tried on all that is left, in the order of execution, but from the end for the one that looks ahead; then all over
    again as long as anything was folded, since a fold may make room for another.

    Args:
        graph: the abstract graph.
        constants: its numbers.
        config: whether to fold at all, and ``fnmatch`` patterns of BatchNorm names that stay.
    """
    order = [operator.name for operator in graph.channel_affines()]
    names = {operator.name: operator.module for operator in graph.channel_affines()}
    must_explain = {operator.name for operator in graph.batch_norms()}
    working = _Working(constants)
    refusals: dict[str, Refusal] = {}
    folded: dict[str, Folded] = {}
    copies: list[Copy] = []
    bypasses: list[Bypass] = []
    for name in order:
        excluded = _exclusion(names[name], config)
        if excluded:
            refusals[name] = Refusal(names[name], RefusalReason.ISOLATED, (), excluded)
    left = [name for name in order if name not in refusals]
    progress = True
    while progress:
        progress = False
        reasons: dict[str, list[Refusal]] = {name: [] for name in left}
        for rewrite in REWRITES[:1] if config.level == "conservative" else REWRITES:
            for name in list(reversed(left) if rewrite is REWRITES[-1] else left):
                outcome = _attempt(graph, graph.operators[name], rewrite, working)
                if isinstance(outcome, Refusal):
                    reasons[name].append(outcome)
                    continue
                rewritten, done = outcome
                for copied in rewritten.copies:
                    graph.copy_(copied.operator, copied.name, copied.readers)
                working.update_(graph, rewritten)
                for operator, value in rewritten.bypasses:
                    graph.bypass_(operator, value)
                copies += rewritten.copies
                bypasses += rewritten.bypasses
                folded[name] = done
                left.remove(name)
                progress = True
        for name in left:
            refusals[name] = _summary(reasons[name])
    kept = tuple(refusals[name] for name in order if name in refusals and name not in folded and name in must_explain)
    done_ = tuple(folded[name] for name in order if name in folded)
    num_affine = sum(name not in must_explain for name in folded)
    return Plan(working.new_numbers(graph), tuple(bypasses), done_, kept, num_affine, tuple(copies), tuple(working.attempts))


def _exclusion(name: str, config: FoldConfig) -> str:
    if not config.enabled:
        return "folding is switched off: fold.enabled"
    return next((f"the pattern {pattern!r} of fold.keep" for pattern in config.keep if fnmatch.fnmatchcase(name, pattern)), "")


def _attempt(graph: AbstractGraph, affine: Operator, rewrite: Rewrite, working: _Working) -> tuple[Rewritten, Folded] | Refusal:
    match = rewrite.requires(graph, affine)
    if isinstance(match, Refusal):
        return match
    rewritten = rewrite.apply(match, working)
    objection = rewritten if isinstance(rewritten, Refusal) else _too_large(graph, affine, rewritten)
    working.attempts.append(attempt_of(rewrite, match, rewritten, objection, is_finite=objection is None))
    if isinstance(rewritten, Refusal):
        return rewritten
    if objection is not None:
        return objection
    first = match.absorbers[0]
    channels = max(working.read(name).size for name in affine_of(affine).parameters)
    name = first.module or first.kind
    return rewritten, Folded(affine.module, name, rewritten.pattern, channels, rewritten.max_scale, rewritten.direction, rewritten.changed)


def _too_large(graph: AbstractGraph, affine: Operator, rewritten: Rewritten) -> Refusal | None:
    """Refuse numbers that the weight's dtype cannot hold; the unfolded program may still be finite."""
    originals = {copied.name: copied.operator for copied in rewritten.copies}
    for name, new in rewritten.numbers.items():
        operator = graph.operators[originals.get(name, name)]
        dtype = graph.values[linear_of(operator).weight].dtype
        for numbers in new.arrays:
            num_lost = num_not_finite(numbers, dtype)
            if num_lost:
                detail = f"{num_lost} of {numbers.size} folded numbers are not finite in {dtype}"
                return Refusal(affine.module, RefusalReason.OUT_OF_RANGE, (operator.label,), detail)
    return None


def _summary(reasons: list[Refusal]) -> Refusal:
    """Return one refusal for what stood in the way on either side.

    The reason is that of the way back, the usual one, unless only the way ahead came as far as numbers.
    """
    back, ahead = reasons[0], reasons[-1]
    if back.reason in {RefusalReason.TRAINING, RefusalReason.NO_RUNNING_STATISTICS, RefusalReason.OUT_OF_RANGE}:
        return back
    reason = ahead.reason if back.reason is RefusalReason.NOT_LINEAR and ahead.reason is not RefusalReason.GRAPH_OUTPUT else back.reason
    culprits = tuple(dict.fromkeys((*back.culprits, *ahead.culprits)))
    before = back.detail or f"behind {', '.join(back.culprits)}"
    after = ahead.detail or f"in front of {', '.join(ahead.culprits)}"
    return Refusal(back.batch_norm, reason, culprits, before if before == after else f"{before}; {after}")


class _Working:
    """The constants with the folds so far in them, exact: a bias that a fold created is read like one that was there."""

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._new: dict[str, LinearNumbers] = {}
        self.attempts: list[Attempt] = []

    def read(self, value: str) -> Float64:
        return self._constants.read(value)

    def dtype(self, value: str) -> str:
        return self._constants.dtype(value)

    def of(self, operator: Operator) -> LinearNumbers:
        if operator.name in self._new:
            return self._new[operator.name]
        role = linear_of(operator)
        return LinearNumbers(self.read(role.weight), None if role.bias is None else self.read(role.bias))

    def update_(self, graph: AbstractGraph, rewritten: Rewritten) -> None:
        self._new.update({name: numbers for name, numbers in rewritten.numbers.items() if name in graph.operators})

    def new_numbers(self, graph: AbstractGraph) -> tuple[NewNumbers, ...]:
        left = ((name, new) for name, new in self._new.items() if name in graph.operators)
        return tuple(NewNumbers(name, new.weight, new.bias, new.border, new.ones) for name, new in left)
