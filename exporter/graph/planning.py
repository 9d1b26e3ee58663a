"""Decide, for every BatchNorm of a graph, how it is folded or why it is kept."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from exporter.artifacts import Folded, Refusal, RefusalReason
from exporter.config import FoldConfig
from exporter.graph.abstract import AbstractGraph, Linear, Operator
from exporter.graph.algebra import Float64
from exporter.graph.rewrites import REWRITES, Constants, Match

__all__ = ["Edit", "Plan", "make_plan"]


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """New numbers for one linear operator, and the BatchNorms that are thereby gone.

    Attributes:
        producer: name of the operator.
        absorbed: names of the BatchNorm operators, from the producer outwards.
        weight, bias: float64, not yet rounded.
    """

    producer: str
    absorbed: tuple[str, ...]
    weight: Float64
    bias: Float64


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, and what was decided; every BatchNorm of the graph is in ``folded`` or in ``refusals``."""

    edits: tuple[Edit, ...]
    folded: tuple[Folded, ...]
    refusals: tuple[Refusal, ...]


def make_plan(graph: AbstractGraph, constants: Constants, config: FoldConfig) -> Plan:
    """Plan the folds of ``graph``, which is changed on the way: folded BatchNorms leave it.

    Args:
        graph: the abstract graph.
        constants: its numbers.
        config: whether to fold at all, and ``fnmatch`` patterns of BatchNorm names that stay.
    """
    working = _Working(constants)
    absorbed: dict[str, list[str]] = {}
    folded: list[Folded] = []
    refusals: list[Refusal] = []
    for name in [operator.name for operator in graph.channel_affines()]:
        affine = graph.operators[name]  # as it reads after the folds so far
        excluded = _exclusion(affine.module, config)
        if excluded:
            refusals.append(Refusal(affine.module, RefusalReason.ISOLATED, (), excluded))
            continue
        outcome = _try_rewrites(graph, affine, working)
        if isinstance(outcome, Refusal):
            refusals.append(outcome)
            continue
        match, max_scale = outcome
        graph.absorb_(affine, match.producer)
        graph.ensure_bias_(match.producer.name)
        absorbed.setdefault(match.producer.name, []).append(name)
        channels = working.bias(match.producer).size
        folded.append(Folded(affine.module, match.producer.module, f"{match.producer.kind}+bn", channels, max_scale))
    edits = tuple(
        Edit(name, tuple(gone), working.weight(graph.operators[name]), working.bias(graph.operators[name])) for name, gone in absorbed.items()
    )
    return Plan(edits, tuple(folded), tuple(refusals))


def _exclusion(name: str, config: FoldConfig) -> str:
    if not config.enabled:
        return "folding is switched off: fold.enabled"
    return next((f"the pattern {pattern!r} of fold.keep" for pattern in config.keep if fnmatch.fnmatchcase(name, pattern)), "")


def _try_rewrites(graph: AbstractGraph, affine: Operator, working: _Working) -> tuple[Match, float] | Refusal:
    refusal: Refusal | None = None
    for rewrite in REWRITES:
        match = rewrite.requires(graph, affine)
        if isinstance(match, Refusal):
            refusal = refusal or match
            continue
        working.look_at(match.producer)
        rewritten = rewrite.apply(match, working)
        objection = rewrite.ensures(match, rewritten, working)
        if objection is None:
            working.replace_(match.producer, rewritten.weight, rewritten.bias)
            return match, rewritten.max_scale
        refusal = refusal or objection
    if refusal is None:
        raise ValueError("there are no rewrites")
    return refusal


class _Working:
    """The constants with the folds so far in them, exact: a bias that a fold created is read like one that was there."""

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._weights: dict[str, Float64] = {}
        self._biases: dict[str, Float64] = {}
        self._producer: Operator | None = None

    def look_at(self, producer: Operator) -> None:
        self._producer = producer

    def read(self, value: str) -> Float64:
        producer = self._producer
        if producer is not None and isinstance(producer.role, Linear) and producer.name in self._weights:
            if value == producer.role.weight:
                return self._weights[producer.name]
            if value == producer.role.bias:
                return self._biases[producer.name]
        return self._constants.read(value)

    def dtype(self, value: str) -> str:
        return self._constants.dtype(value)

    def replace_(self, producer: Operator, weight: Float64, bias: Float64) -> None:
        self._weights[producer.name], self._biases[producer.name] = weight, bias

    def weight(self, producer: Operator) -> Float64:
        return self._weights[producer.name]

    def bias(self, producer: Operator) -> Float64:
        return self._biases[producer.name]
