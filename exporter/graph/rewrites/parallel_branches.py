"""BatchNorm as a branch beside convolutions of the same input, all of them added up: RepVGG, MobileOne.

    W1 * x + b1  +  W2 * x + b2  +  s x + t  =  (W1 + W2 + diag(s)) * x + (b1 + b2 + t)

The kernels of the other branches are laid into the largest one where their taps look: tap ``i`` of a convolution looks at
``stride o - padding + dilation i``, and a BatchNorm at ``o``. ``diag(s)`` is a kernel of one tap with ``s`` on the diagonal of every
group. It is exact where each branch is read by the sum alone, the strides and groups are the same, and every tap of the others is a
tap of the largest kernel. What pads with zeros does so in both forms, so the borders agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exporter.artifacts import Refusal, RefusalReason
from exporter.graph.abstract import AbstractGraph, Operator
from exporter.graph.rewrites.contract import Bypass, Match, Numbers, Rewritten, affine_numbers, linear_of
from exporter.graph.rewrites.linear_numbers import LinearNumbers
from exporter.graph.rewrites.objections import affine_of, objection_to_numbers, objection_to_statistics
from exporter.graph.rewrites.sums import (
    flat_taps,
    identity_window,
    is_branch,
    outermost_sum,
    places_in,
    removal_of,
    same_products,
    terms_of,
    window_of,
)

__all__ = ["ParallelBranches"]


@dataclass(frozen=True, slots=True)
class _Branches:
    """The convolution that takes everything, the others and their signs, the sums that go, from the inside outwards, and their modules."""

    kept: Operator
    merged: tuple[tuple[Operator, int], ...]
    sign: int
    bypasses: tuple[Bypass, ...]
    sums: tuple[str, ...]


class ParallelBranches:
    """Fold ``s x + t`` and the convolutions beside it into one convolution of ``x``."""

    looks_ahead = False

    def requires(self, graph: AbstractGraph, affine: Operator) -> Match | Refusal:
        """Return the branches that become one, or the first reason against it."""
        refusal = objection_to_statistics(graph, affine)
        if refusal is not None:
            return refusal
        role = affine_of(affine)
        root = outermost_sum(graph, affine.output)
        if root is None or role.axis != 1:
            return Refusal(
                affine.module, RefusalReason.NOT_LINEAR, tuple(user.label for user in graph.users_of(affine.output)), "it is no branch of a sum"
            )
        signs = {term.value: term.sign for term in terms_of(graph, root.output)}
        found = [producer for value in signs if (producer := graph.producer_of(value)) is not None and is_branch(graph, producer, role.data)]
        products = [product for product in found if objection_to_numbers(graph, affine, product) is None]
        fitting = [product for product in products if places_in(identity_window(product), window_of(product)) is not None]
        if affine.output not in signs or not fitting:
            return Refusal(affine.module, RefusalReason.NOT_LINEAR, (root.label,), "no convolution of the same input is added to it")
        kept = max(fitting, key=lambda product: np.prod(window_of(product).kernel))
        sign = signs[kept.output]
        merged = tuple(
            (product, sign * signs[product.output])
            for product in products
            if product.name != kept.name and same_products(kept, product) and places_in(window_of(product), window_of(kept)) is not None
        )
        bypasses = removal_of(graph, root, {affine.output, *(product.output for product, _ in merged)})
        if bypasses is None:
            return Refusal(affine.module, RefusalReason.NOT_LINEAR, (root.label,), "a branch is taken from it")
        sums = tuple(graph.operators[name].module for name, _ in bypasses)
        return Match(affine, (kept, *(product for product, _ in merged)), _Branches(kept, merged, sign * signs[affine.output], bypasses, sums))

    def apply(self, match: Match, numbers: Numbers) -> Rewritten | Refusal:
        """Return the one kernel and its bias."""
        branches = match.route
        if not isinstance(branches, _Branches):
            raise TypeError("this match comes from another rewrite")
        s, t = affine_numbers(match.affine, numbers)
        kept, role = branches.kept, linear_of(branches.kept)
        have = numbers.of(kept)
        if not have.is_plain or any(not numbers.of(product).is_plain for product, _ in branches.merged):
            return Refusal(match.affine.module, RefusalReason.BLOCKED, (kept.label,), "a branch has a border of its own")
        weight, bias = np.array(have.weight, order="C"), have.bias
        if weight.shape[0] != s.size or weight.shape[1] * role.groups != s.size:
            detail = f"{kept.label} has {weight.shape[1] * role.groups} channels in and {weight.shape[0]} out"
            return Refusal(match.affine.module, RefusalReason.WRONG_AXIS, (kept.label,), detail)
        total = branches.sign * t if bias is None else bias + branches.sign * t
        taps = weight.reshape(*weight.shape[:2], -1)  # a view: one axis for all taps
        channels = np.arange(s.size)
        taps[channels, channels % weight.shape[1], flat_taps(identity_window(kept), kept)[0]] += branches.sign * s
        for product, sign in branches.merged:
            small = numbers.of(product)
            taps[:, :, flat_taps(window_of(product), kept)] += sign * small.weight.reshape(*small.weight.shape[:2], -1)
            total = total if small.bias is None else total + sign * small.bias
        kinds = "+".join((kept.kind, *(product.kind for product, _ in branches.merged), "bn"))
        changed = (*(product.module for product in match.absorbers), *branches.sums)
        new = {kept.name: LinearNumbers(weight, total)}
        return Rewritten(new, branches.bypasses, f"sum of {kinds}", float(np.abs(s).max(initial=0.0)), "beside", changed)
