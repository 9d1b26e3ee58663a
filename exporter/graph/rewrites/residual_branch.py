"""BatchNorm behind a sum of convolutions of ``x`` and of ``x`` itself: RepViT.

    BN(W1 * x + b1 + W2 * x + b2 + x) = (s (W1 + 1)) * x + (s b1 + t) + (s W2) * x + s b2

``1`` is a kernel of one tap with ones on the diagonal of every group, laid into the first kernel that has a tap looking at the output's
own place. It is exact where each convolution is read by the sum alone, the sum by the BatchNorm alone, and nothing changes ``x`` in
place in between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from exporter.artifacts import Refusal, RefusalReason
from exporter.graph.abstract import AbstractGraph, Operator
from exporter.graph.rewrites.contract import Bypass, Match, Numbers, Rewritten, affine_numbers, linear_of
from exporter.graph.rewrites.linear_numbers import LinearNumbers
from exporter.graph.rewrites.objections import affine_of, objection_to_numbers, objection_to_statistics
from exporter.graph.rewrites.sums import flat_taps, identity_window, is_branch, is_private, places_in, removal_of, terms_of, window_of
from exporter.graph.through import Sum

__all__ = ["ResidualBranch"]


@dataclass(frozen=True, slots=True)
class _Branches:
    """The convolution that takes the residual, all convolutions, what goes, and the modules of the sums."""

    kept: Operator
    products: tuple[Operator, ...]
    bypasses: tuple[Bypass, ...]
    sums: tuple[str, ...]


class ResidualBranch:
    """Fold ``s z + t`` and the residual in ``z`` into the convolutions beside it."""

    looks_ahead = False

    def requires(self, graph: AbstractGraph, affine: Operator) -> Match | Refusal:
        """Return the convolutions, or the first reason against it."""
        refusal = objection_to_statistics(graph, affine)
        if refusal is not None:
            return refusal
        role = affine_of(affine)
        root = graph.producer_of(role.data)
        if root is None or not isinstance(root.role, Sum) or role.axis != 1 or not is_private(graph, role.data):
            return Refusal(affine.module, RefusalReason.NOT_LINEAR, (), "no sum is in front of it")
        terms = terms_of(graph, role.data)
        products, others = [], []
        for term in terms:
            producer = graph.producer_of(term.value)
            if producer is not None and is_private(graph, term.value) and any(is_branch(graph, producer, other.value) for other in terms):
                products.append(producer)
            else:
                others.append(term)
        if len(others) != 1 or not products or any(term.sign != 1 for term in terms):
            return Refusal(affine.module, RefusalReason.NOT_LINEAR, (root.label,), "the sum is not one of convolutions and of what they read")
        residual = others[0].value
        for product in products:
            refusal = objection_to_numbers(graph, affine, product)
            if refusal is not None:
                return refusal
            if linear_of(product).data != residual or graph.written_after(residual, product) is not None:
                return Refusal(affine.module, RefusalReason.NOT_LINEAR, (product.label,), "it reads something else than what is added to it")
        fitting = [product for product in products if places_in(identity_window(product), window_of(product)) is not None]
        bypasses = removal_of(graph, root, {residual})
        if not fitting or bypasses is None:
            return Refusal(affine.module, RefusalReason.NOT_LINEAR, (root.label,), "no kernel has a tap for what is added to it")
        gone = dict(bypasses)
        data = gone.get(root.name, role.data)
        sums = tuple(graph.operators[name].module for name in (root.name, *gone))
        rest = tuple(product for product in products if product is not fitting[0])
        return Match(affine, (fitting[0], *rest), _Branches(fitting[0], tuple(products), (*bypasses, (affine.name, data)), sums))

    def apply(self, match: Match, numbers: Numbers) -> Rewritten | Refusal:
        """Return the kernels and their biases."""
        branches = match.route
        if not isinstance(branches, _Branches):
            raise TypeError("this match comes from another rewrite")
        s, t = affine_numbers(match.affine, numbers)
        new: dict[str, LinearNumbers] = {}
        for product in branches.products:
            role, have, shift = linear_of(product), numbers.of(product), np.zeros_like(t)
            if product is branches.kept:
                weight = np.array(have.weight, order="C")
                if weight.shape[0] != s.size or weight.shape[1] * role.groups != s.size:
                    detail = f"{product.label} has {weight.shape[1] * role.groups} channels in and {weight.shape[0]} out"
                    return Refusal(match.affine.module, RefusalReason.WRONG_AXIS, (product.label,), detail)
                taps, channels = weight.reshape(*weight.shape[:2], -1), np.arange(s.size)  # taps are a view
                taps[channels, channels % weight.shape[1], flat_taps(identity_window(product), product)[0]] += 1.0
                have, shift = replace(have, given=weight), t
            new[product.name] = have.behind(role, s, shift, with_bias=product is branches.kept)
        kinds = "+".join((*(product.kind for product in match.absorbers), "x"))
        changed = (*(product.module for product in branches.products), *branches.sums)
        return Rewritten(new, branches.bypasses, f"sum of {kinds}+bn", float(np.abs(s).max(initial=0.0)), "back", changed)
