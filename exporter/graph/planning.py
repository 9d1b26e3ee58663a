"""Decide, for every BatchNorm of a graph, how it is folded or why it is kept."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from exporter.artifacts import Cost, Folded, Refusal, RefusalReason
from exporter.config import FoldConfig
from exporter.graph.abstract import AbstractGraph, BatchNorm, ConstantAffine, Operator
from exporter.graph.algebra import Float64
from exporter.graph.attempts import Attempt, attempt_of, num_not_finite
from exporter.graph.cost import cost_of_operator, pays, total_of
from exporter.graph.rewrites import AHEAD, BACK, CONSERVATIVE, LONE, REWRITES, WITH_WORK, Constants, Copy, LinearNumbers, Rewrite, Rewritten
from exporter.graph.rewrites.contract import Bypass, linear_of, num_channels, numbers_given
from exporter.graph.rewrites.late_weight import LateWeight
from exporter.graph.steepness import steepness_of

__all__ = ["Copy", "NewNumbers", "Plan", "make_plan"]


@dataclass(frozen=True, slots=True, eq=False)
class NewNumbers:
    """New numbers of one linear operator, or of a BatchNorm that stays; float64, not yet rounded.

    Attributes:
        given: the weight, or how it is computed; of a BatchNorm, gamma, and ``bias`` is beta.
        bias: None stays absent.
        border: a constant that is added to the output, of shape ``(1, outputs, *spatial)``.
        ones: the weight of one further input channel of each group, behind the others, that is one everywhere and padded with zeros
            like them; of shape ``(outputs, 1, *kernel)``, also for a transposed convolution.
    """

    operator: str
    given: Float64 | LateWeight
    bias: Float64 | None
    border: Float64 | None = None
    ones: Float64 | None = None

    @property
    def weight(self) -> Float64:
        """Return the weight, which may be computed anew each time."""
        return self.given.read() if isinstance(self.given, LateWeight) else self.given


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, and what was decided; every BatchNorm of the graph is in ``folded`` or in ``refusals``.

    Attributes:
        copies: operators that there are twice from now on; made first, in order.
        numbers: new weights and biases.
        bypasses: operators that go, in order, each with the value that is read in place of its output.
        attempts: what fitted the graph around a BatchNorm, in order, whether its numbers allowed it or not.
        cost_before, cost_after: of the whole graph, for a batch of one where its size is dynamic.
        missed: what was required to be folded, and why it cannot be.
        num_affine: folds of products and sums with constants, one behind the other, that nobody calls a BatchNorm.
        absorbed: products and sums that stood alone and are gone; none of ``folded``, ``refusals`` and ``num_affine`` counts them.
    """

    numbers: tuple[NewNumbers, ...]
    bypasses: tuple[Bypass, ...]
    folded: tuple[Folded, ...]
    refusals: tuple[Refusal, ...]
    num_affine: int = 0
    absorbed: tuple[Folded, ...] = ()
    copies: tuple[Copy, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    cost_before: Cost = field(default_factory=Cost)
    cost_after: Cost = field(default_factory=Cost)
    missed: Mapping[str, Refusal] = field(default_factory=dict)


def make_plan(graph: AbstractGraph, constants: Constants, config: FoldConfig, *, required: Collection[str] = ()) -> Plan:
    """Plan the folds of ``graph``, which is changed on the way: folded BatchNorms leave it.

    Each rewrite is tried on all that is left, in the order of execution, but from the end for those that look ahead; then all over
    again as long as anything was folded, since a fold may make room for another. Products and sums that stand alone come where no BatchNorm
    is left to fold; what adds work comes where nothing else is left to do.

    Args:
        graph: the abstract graph.
        constants: its numbers.
        config: whether to fold at all, ``fnmatch`` patterns of BatchNorm names that stay, and how much to fold.
        required: operators that are folded whatever the configuration says and whatever it costs, if that is exact.
    """
    planning = _Planning(graph, constants, config, required)
    conservative = config.level == "conservative"
    norms, lone = planning.norms, planning.lone
    stages = ((CONSERVATIVE, norms), (CONSERVATIVE, lone)) if conservative else ((REWRITES, norms), (LONE, lone), (WITH_WORK, norms))
    while any(planning.round_(rewrites, names) for rewrites, names in stages):
        pass
    if required:
        while any(planning.round_(rewrites, required) for rewrites in (REWRITES, WITH_WORK)):
            pass
    return planning.plan()


class _Planning:
    """A graph in work, and what was decided so far."""

    def __init__(self, graph: AbstractGraph, constants: Constants, config: FoldConfig, required: Collection[str]) -> None:
        self._graph = graph
        self._required = required
        self._config = config
        self._costs = {name: (operator, cost_of_operator(graph, operator)) for name, operator in graph.operators.items()}
        self._names = {operator.name: operator.module for operator in graph.channel_affines()}
        self._must_explain = {operator.name for operator in graph.batch_norms()}
        self.lone = {operator.name for operator in graph.channel_affines() if _is_lone(operator)}
        self.norms = self._names.keys() - self.lone
        self._read = {operator.name: operator.inputs for operator in graph.operators.values()}
        self._working = _Working(constants)
        self._attempts: list[Attempt] = []
        self._refusals: dict[str, Refusal] = {}
        self._folded: dict[str, Folded] = {}
        self._dear: dict[str, str] = {}
        """BatchNorm -> what an exact fold of it would cost that does not pay."""
        self._copies: list[Copy] = []
        self._bypasses: list[Bypass] = []
        for name, module in self._names.items():
            excluded = _exclusion(module, config)
            if excluded and name not in required:
                self._refusals[name] = Refusal(module, RefusalReason.ISOLATED, (), excluded)
        self._left = [name for name in self._names if name not in self._refusals]
        self._reasons: dict[str, dict[Rewrite, Refusal]] = {name: {} for name in self._left}
        self._refused_at: dict[tuple[str, Rewrite], int] = {}
        """How many folds had been made when a rewrite was refused: without one more it would be refused again."""

    def round_(self, rewrites: tuple[Rewrite, ...], only: Collection[str]) -> bool:
        """Try each rewrite on these operators, as far as they are left; return whether any was folded."""
        num_left = len(self._left)
        for rewrite in rewrites:
            for name in list(reversed(self._left) if rewrite.looks_ahead else self._left):
                if name not in only or self._refused_at.get((name, rewrite)) == len(self._folded):
                    continue
                outcome = self._attempt(self._graph.operators[name], rewrite)
                if isinstance(outcome, Refusal):
                    self._reasons[name][rewrite] = outcome
                    self._refused_at[name, rewrite] = len(self._folded)
                    continue
                rewritten, self._folded[name] = outcome
                self._carry_out_(rewritten)
                self._left.remove(name)
        return len(self._left) < num_left

    def plan(self) -> Plan:
        """Return all that was decided."""
        refusals = {**self._refusals, **{name: _summary(self._reasons[name], self._dear.get(name, "")) for name in self._left}}
        kept = tuple(refusals[name] for name in self._names if name in refusals and name in self._must_explain)
        done = tuple(self._folded[name] for name in self._names if name in self._folded and name not in self.lone)
        absorbed = tuple(self._folded[name] for name in self._names if name in self._folded and name in self.lone)
        num_affine = sum(name not in self._must_explain and name not in self.lone for name in self._folded)
        numbers = self._working.new_numbers(self._graph)
        costs = (total_of(cost for _, each in self._costs.values() for cost in each), total_of(self._costs_after()))
        missed = {name: refusals[name] for name in self._required if name in refusals}
        return Plan(numbers, tuple(self._bypasses), done, kept, num_affine, absorbed, tuple(self._copies), tuple(self._attempts), *costs, missed)

    def _costs_after(self) -> Iterator[Cost]:
        for name, operator in self._graph.operators.items():
            before, costs = self._costs.get(name, (None, ()))
            if name in self._working.changed:
                yield from cost_of_operator(self._graph, operator, self._working.of(operator))
            else:
                yield from costs if operator is before else cost_of_operator(self._graph, operator)

    def _carry_out_(self, rewritten: Rewritten) -> None:
        for copied in rewritten.copies:
            self._graph.copy_(copied.operator, copied.name, copied.readers)
        self._working.update_(self._graph, rewritten)
        for operator, value in rewritten.bypasses:
            self._graph.bypass_(operator, value)
        self._copies += rewritten.copies
        self._bypasses += rewritten.bypasses

    def _attempt(self, affine: Operator, rewrite: Rewrite) -> tuple[Rewritten, Folded] | Refusal:
        match = rewrite.requires(self._graph, affine)
        if isinstance(match, Refusal):
            return match
        rewritten = rewrite.apply(match, self._working)
        if isinstance(rewritten, Refusal):
            self._attempts.append(attempt_of(rewrite, match, rewritten, rewritten, is_finite=True))
            return rewritten
        overflow = _too_large(self._graph, affine, rewritten)
        objection = overflow or self._too_late(affine, rewritten) or self._too_dear(affine, rewrite, rewritten)
        self._attempts.append(attempt_of(rewrite, match, rewritten, objection, is_finite=overflow is None))
        if objection is not None:
            return objection
        first = match.absorbers[0]
        channels = num_channels(affine, self._working)
        name, changed = first.module or first.kind, rewritten.changed
        if _is_lone(affine):  # what made its data makes what it made, and whoever counts the calls of its module finds one less
            others = (product.module for product in match.absorbers if rewritten.direction == "back")
            changed = tuple(dict.fromkeys((*changed, affine.module, *others)))
        steep = steepness_of(affine.role, self._working)
        gone = affine.module or affine.name
        return rewritten, Folded(gone, name, rewritten.pattern, channels, rewritten.max_scale, rewritten.direction, changed, steep)

    def _too_late(self, affine: Operator, rewritten: Rewritten) -> Refusal | None:
        """Refuse a copy for a reader that read something else when all began: copies are made before anything else is done."""
        originals = {copied.name: copied.operator for copied in (*self._copies, *rewritten.copies)}
        for copied in rewritten.copies:
            source = copied.operator
            while source in originals:
                source = originals[source]
            if any(source not in self._read.get(reader, ()) for reader in copied.readers):
                return Refusal(affine.module, RefusalReason.OTHER_CONSUMER, (source,), "what stood in between is folded already")
        return None

    def _too_dear(self, affine: Operator, rewrite: Rewrite, rewritten: Rewritten) -> Refusal | None:
        """Refuse what adds work and does not pay, unless everything is asked for; of what stands alone, whatever leaves as much work."""
        if not _is_lone(affine) and (rewrite not in WITH_WORK or self._config.level == "aggressive" or affine.name in self._required):
            return None
        graph, originals = self._graph, {copied.name: copied.operator for copied in rewritten.copies}
        gone = [graph.operators[name] for name, _ in rewritten.bypasses]
        before = [cost for operator in gone for cost in cost_of_operator(graph, operator)]
        after: list[Cost] = []
        for name, numbers in rewritten.numbers.items():
            operator = graph.operators[originals.get(name, name)]
            before += cost_of_operator(graph, operator, self._working.of(operator)) if name not in originals else ()
            after += cost_of_operator(graph, operator, numbers)
        if pays(before, after):
            return None
        old, new = total_of(before), total_of(after)
        self._dear[affine.name] = f"exact at the level aggressive, with FLOPs {old.flops} -> {new.flops} and bytes {old.bytes} -> {new.bytes} here"
        return Refusal(affine.module, RefusalReason.BLOCKED, (), self._dear[affine.name])


def _is_lone(operator: Operator) -> bool:
    return isinstance(operator.role, ConstantAffine) and operator.role.lone is not None


def _exclusion(name: str, config: FoldConfig) -> str:
    if not config.enabled:
        return "folding is switched off: fold.enabled"
    return next((f"the pattern {pattern!r} of fold.keep" for pattern in config.keep if fnmatch.fnmatchcase(name, pattern)), "")


def _too_large(graph: AbstractGraph, affine: Operator, rewritten: Rewritten) -> Refusal | None:
    """Refuse numbers that the weight's dtype cannot hold; the unfolded program may still be finite."""
    originals = {copied.name: copied.operator for copied in rewritten.copies}
    for name, new in rewritten.numbers.items():
        dtype = _dtype_of(graph, graph.operators[originals.get(name, name)])
        num_lost, size = num_not_finite(new, dtype)
        if num_lost:
            detail = f"{num_lost} of {size} folded numbers are not finite in {dtype}"
            culprit = graph.operators[originals.get(name, name)].label
            return Refusal(affine.module, RefusalReason.OUT_OF_RANGE, (culprit,), detail)
    return None


def _dtype_of(graph: AbstractGraph, operator: Operator) -> str:
    """Return the dtype that the numbers of an operator are rounded to."""
    name = operator.role.parameters[0] if isinstance(operator.role, BatchNorm) else linear_of(operator).weight
    return graph.values[name].dtype


def _summary(reasons: Mapping[Rewrite, Refusal], dear: str) -> Refusal:
    """Return one refusal for what stood in the way on either side, and what it would cost to get past it.

    The reason is that of the way back, the usual one, unless only the way ahead came as far as numbers.
    """
    back = reasons[BACK]
    if back.reason in {RefusalReason.TRAINING, RefusalReason.NO_RUNNING_STATISTICS, RefusalReason.OUT_OF_RANGE}:
        return back
    if AHEAD not in reasons:
        return Refusal(back.batch_norm, back.reason, back.culprits, back.detail or f"behind {', '.join(back.culprits)}")
    ahead = reasons[AHEAD]
    reason = ahead.reason if back.reason is RefusalReason.NOT_LINEAR and ahead.reason is not RefusalReason.GRAPH_OUTPUT else back.reason
    culprits = tuple(dict.fromkeys((*back.culprits, *ahead.culprits)))
    before = back.detail or f"behind {', '.join(back.culprits)}"
    after = ahead.detail or f"in front of {', '.join(ahead.culprits)}"
    return Refusal(back.batch_norm, reason, culprits, "; ".join(dict.fromkeys(filter(None, (before, after, dear)))))


class _Working:
    """The constants with the folds so far in them, exact: a bias that a fold created is read like one that was there."""

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._new: dict[str, LinearNumbers] = {}
        self._small: dict[str, Float64] = {}

    def read(self, value: str) -> Float64:
        if value not in self._small:
            numbers = self._constants.read(value)
            if numbers.ndim > 1:
                return numbers
            self._small[value] = numbers
        return self._small[value]

    def kept(self, value: str) -> NDArray[Any]:
        return self._constants.kept(value)

    def dtype(self, value: str) -> str:
        return self._constants.dtype(value)

    def of(self, operator: Operator) -> LinearNumbers:
        if operator.name in self._new:
            return self._new[operator.name]
        return numbers_given(operator, self)

    @property
    def changed(self) -> Collection[str]:
        """Return the operators that have new numbers."""
        return self._new.keys()

    def update_(self, graph: AbstractGraph, rewritten: Rewritten) -> None:
        self._new.update({name: numbers for name, numbers in rewritten.numbers.items() if name in graph.operators})

    def new_numbers(self, graph: AbstractGraph) -> tuple[NewNumbers, ...]:
        left = ((name, new) for name, new in self._new.items() if name in graph.operators)
        return tuple(NewNumbers(name, new.given, new.bias, new.border, new.ones) for name, new in left)
