"""BatchNorm behind a product that others read too: a copy of the product for the BatchNorm alone.

    z = W * x + b        BN(z) = (s W) * x + (s b + t)        and z stays for its other readers, or as an output

The algebra is that of ``into_producers.py``. The product is computed twice, so the planner weighs it.
"""

from __future__ import annotations

import numpy as np

from exporter.artifacts import Refusal, RefusalReason
from exporter.graph.abstract import AbstractGraph, Operator
from exporter.graph.rewrites.back import WayBack, ways_back
from exporter.graph.rewrites.contract import Copy, Match, Numbers, Rewritten, affine_numbers
from exporter.graph.rewrites.into_producers import changed_back, numbers_behind, pattern_back
from exporter.graph.rewrites.objections import affine_of, objection_to_statistics
from exporter.graph.through import Carried

__all__ = ["CopiedProducers"]


class CopiedProducers:
    """Fold ``s z + t`` into copies of the linear operators that make ``z``, where something else reads ``z``."""

    looks_ahead = False

    def requires(self, graph: AbstractGraph, affine: Operator) -> Match | Refusal:
        """Return the ways back to the products, or the first reason against the fold."""
        refusal = objection_to_statistics(graph, affine)
        if refusal is not None:
            return refusal
        ways = ways_back(graph, affine, may_share=True)
        if isinstance(ways, Refusal):
            return ways
        if not any(way.is_shared for way in ways):
            return Refusal(affine.module, RefusalReason.OTHER_CONSUMER, (), "nothing else reads what the products make")
        copies = {way.product.name: graph.free_name(f"{way.product.name}_copy") for way in ways if way.is_shared}
        return Match(affine, tuple(way.product for way in ways), (ways, copies))

    def apply(self, match: Match, numbers: Numbers) -> Rewritten | Refusal:
        """Return the copies, and ``W'`` and ``b'`` of each."""
        affine, route = match.affine, match.route
        s, t = affine_numbers(affine, numbers)
        if not isinstance(route, tuple):
            raise TypeError("this match comes from another rewrite")
        ways, names = route
        new = numbers_behind(affine, ways, Carried(affine_of(affine).axis, s, t), numbers)
        if isinstance(new, Refusal):
            return new
        copies = tuple(Copy(way.product.name, names[way.product.name], (_reader(affine, way),)) for way in ways if way.is_shared)
        renamed = {names.get(product, product): own for product, own in new.items()}
        data = affine_of(affine).data
        bypass = (affine.name, names.get(data, data))
        changed = changed_back(ways) or tuple(way.product.module for way in ways)
        return Rewritten(renamed, (bypass,), pattern_back(affine, ways), float(np.abs(s).max(initial=0.0)), "back", changed, copies)


def _reader(affine: Operator, way: WayBack) -> str:
    """Return the operator that reads the product on the way to the BatchNorm."""
    return way.steps[-1][0].name if way.steps else affine.name
