"""BatchNorm directly behind a BatchNorm that stays: one BatchNorm.

    BN1(x) = g (x - mean) / sqrt(var + eps) + b        BN2(z) = s z + t

    BN2(BN1(x)) = (s g) (x - mean) / sqrt(var + eps) + (s b + t)

    gamma    g'[c] = s[c] g[c]                g = 1 where the first has none; then it gets one
    beta     b'[c] = s[c] b[c] + t[c]         b = 0 where the first has none; then it gets one

Mean, variance and eps of the first stay, so nothing is divided anew. It is exact if both act on the same axis and the second alone
reads the first.
"""

from __future__ import annotations

import numpy as np

from exporter.artifacts import Refusal, RefusalReason
from exporter.graph.abstract import AbstractGraph, BatchNorm, Operator
from exporter.graph.algebra import shifted_bias
from exporter.graph.rewrites.contract import Match, Numbers, Rewritten, affine_numbers
from exporter.graph.rewrites.into_producers import name_of_affine
from exporter.graph.rewrites.linear_numbers import LinearNumbers
from exporter.graph.rewrites.objections import affine_of, objection_to_statistics
from exporter.graph.rewrites.sums import is_private

__all__ = ["IntoBatchNorm"]


class IntoBatchNorm:
    """Fold ``s z + t`` into gamma and beta of the BatchNorm that makes ``z``."""

    looks_ahead = False

    def requires(self, graph: AbstractGraph, affine: Operator) -> Match | Refusal:
        """Return the BatchNorm in front, or the first reason against the fold."""
        refusal = objection_to_statistics(graph, affine)
        if refusal is not None:
            return refusal
        data = affine_of(affine).data
        first = graph.producer_of(data)
        if first is None or not isinstance(first.role, BatchNorm):
            return Refusal(affine.module, RefusalReason.NOT_LINEAR, (), "no BatchNorm stands directly in front of it")
        objection = objection_to_statistics(graph, first)
        if objection is not None:
            return Refusal(affine.module, objection.reason, (first.label,), objection.detail)
        if first.role.axis != affine_of(affine).axis:
            detail = f"{first.label} acts on axis {first.role.axis}, it acts on axis {affine_of(affine).axis}"
            return Refusal(affine.module, RefusalReason.WRONG_AXIS, (first.label,), detail)
        if not is_private(graph, data):
            reason = RefusalReason.GRAPH_OUTPUT if graph.values[data].is_output else RefusalReason.OTHER_CONSUMER
            others = tuple(user.label for user in graph.users_of(data) if user.name != affine.name)
            return Refusal(affine.module, reason, others or (first.label,))
        return Match(affine, (first,))

    def apply(self, match: Match, numbers: Numbers) -> Rewritten | Refusal:
        """Return the new gamma and beta."""
        s, t = affine_numbers(match.affine, numbers)
        first, own = match.absorbers[0], numbers.of(match.absorbers[0])
        new = LinearNumbers(s * own.weight, shifted_bias(own.bias, s, t))
        bypass = (match.affine.name, affine_of(match.affine).data)
        return Rewritten(
            {first.name: new}, (bypass,), f"batch_norm+{name_of_affine(match.affine)}", float(np.abs(s).max(initial=0.0)), "back", (first.module,)
        )
