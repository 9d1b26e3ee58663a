"""BatchNorm behind a maximum, with negative scales: the sign goes ahead, the rest goes back.

With ``g = sign(s)`` (1 where ``s`` is 0), so that ``s = g |s|`` and ``g g = 1``:

    s max(z) + t = g (|s| max(z) + g t) = g max(|s| z + g t)

    back     the products that make ``z`` take ``|s| z + g t``, which passes a maximum since no ``|s|`` is negative
    ahead    the products that read the BatchNorm take ``g x``; it has no shift, so zeros that they pad with stay zeros

It is exact if the products on both sides can take their part.
"""

from __future__ import annotations

import numpy as np

from exporter.artifacts import Refusal, RefusalReason
from exporter.graph.abstract import AbstractGraph, Operator
from exporter.graph.rewrites.ahead import ways_ahead
from exporter.graph.rewrites.back import ways_back
from exporter.graph.rewrites.contract import Match, Numbers, Rewritten, affine_numbers
from exporter.graph.rewrites.into_consumers import changed_ahead, numbers_ahead
from exporter.graph.rewrites.into_producers import changed_back, numbers_behind, pattern_back
from exporter.graph.rewrites.objections import affine_of, objection_to_statistics
from exporter.graph.through import Carried, Maximum

__all__ = ["SignedMaximum"]


class SignedMaximum:
    """Fold ``|s| z + g t`` into what makes ``z``, and ``g`` into what reads the BatchNorm."""

    looks_ahead = True

    def requires(self, graph: AbstractGraph, affine: Operator) -> Match | Refusal:
        """Return the ways on both sides, or the first reason against the fold."""
        refusal = objection_to_statistics(graph, affine)
        if refusal is not None:
            return refusal
        back = ways_back(graph, affine)
        if isinstance(back, Refusal):
            return back
        if not any(isinstance(operator.role, Maximum) for way in back for operator, _ in way.steps):
            return Refusal(affine.module, RefusalReason.NOT_LINEAR, (), "no maximum is in front of it")
        ahead = ways_ahead(graph, affine)
        if isinstance(ahead, Refusal):
            return ahead
        return Match(affine, (*(way.product for way in back), *(way.product for way in ahead)), (back, ahead))

    def apply(self, match: Match, numbers: Numbers) -> Rewritten | Refusal:
        """Return the numbers of the products on both sides."""
        affine, route = match.affine, match.route
        s, t = affine_numbers(affine, numbers)
        if not isinstance(route, tuple):
            raise TypeError("this match comes from another rewrite")
        back, ahead = route
        axis, sign = affine_of(affine).axis, np.where(s < 0.0, -1.0, 1.0)
        behind = numbers_behind(affine, back, Carried(axis, np.abs(s), sign * t), numbers)
        if isinstance(behind, Refusal):
            return behind
        before = numbers_ahead(affine, ahead, Carried(axis, sign, np.zeros_like(t)), numbers)
        if isinstance(before, Refusal):
            return before
        bypass = (affine.name, affine_of(affine).data)
        changed = tuple(dict.fromkeys((*changed_back(back), *changed_ahead(ahead))))
        pattern = f"{pattern_back(affine, back)}+{ahead[0].product.kind}"
        return Rewritten({**behind, **before}, (bypass,), pattern, float(np.abs(s).max(initial=0.0)), "back", changed)
