"""BatchNorm into convolutions behind it that pad with zeros, and into transposed ones: what the shift becomes at a border.

The zeros are put around ``s x + t``, so a tap that looks at one of them sees 0, not ``t``. With ``T[o, k]``, what tap ``k`` makes of ``t``:

    T[o, k] = sum over c of W[o, c, k] t[c]                      c along the input channels, within the group of o
    W0 * (s x + t) = (W s) * x + sum over the taps k that are inside at y of T[o, k]

The last term is the same for every input: it is a constant of each place. There are two exact ways to write it:

    border   where the sizes are known: a constant map that is added to the output,
             border[o, y] = sum over k of T[o, k] inside[y, k], with one matrix of zeros and ones for each axis, since a tap is inside
             where it is so along every axis: ``stride y - padding + dilation k`` in ``0 ... size - 1``
    ones     where they are not: one further input channel of each group that is one everywhere, with the weight ``T``. It is padded
             with zeros like the others, so it is 1 where a tap is inside and 0 where it is not.

Where a convolution of one tap alone reads what the product makes, it takes the border, ``V border``, to be added to what it makes in its
turn: that is no larger, and nothing stands between the two convolutions.

A transposed convolution reaches place ``y`` from ``(y + padding - dilation k) / stride``, where that is a whole number in the input.
Zeros that an operator of its own puts right in front of the convolution (SAME padding) are counted with the convolution's.

Both add work, a sum over the output or a channel, so the planner weighs them. With ``t = 0`` nothing is missed: that is ``into_consumers.py``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from exporter.artifacts import Refusal, RefusalReason
from exporter.graph.abstract import AbstractGraph, Linear, Operator
from exporter.graph.algebra import Float64, map_at_each_place, places_inside, shift_of_each_place, shift_of_each_tap
from exporter.graph.rewrites.ahead import WayAhead, carried_ahead, ways_ahead
from exporter.graph.rewrites.contract import Match, Numbers, Rewritten, affine_numbers, linear_of
from exporter.graph.rewrites.into_consumers import changed_ahead, numbers_ahead, pattern_ahead
from exporter.graph.rewrites.linear_numbers import LinearNumbers
from exporter.graph.rewrites.objections import affine_of, objection_to_numbers, objection_to_statistics
from exporter.graph.rewrites.sums import is_private
from exporter.graph.through import Carried, KeepsChannels

__all__ = ["PaddedConsumers"]


class PaddedConsumers:
    """Fold ``s x + t`` into all linear operators that read it, with a border or a channel of ones where one of them misses ``t``."""

    looks_ahead = True

    def requires(self, graph: AbstractGraph, affine: Operator) -> Match | Refusal:
        """Return the ways ahead, or the first reason against the fold."""
        refusal = objection_to_statistics(graph, affine)
        if refusal is not None:
            return refusal
        ways = ways_ahead(graph, affine)
        if isinstance(ways, Refusal):
            return ways
        if all(linear_of(way.product).sees_all and not _zeros_before(way) for way in ways):
            return Refusal(affine.module, RefusalReason.PADDED, (), "nothing pads with zeros")
        ways = tuple(replace(way, behind=_behind(graph, affine, way.product)) for way in ways)
        behind = (way.behind for way in ways if way.behind is not None)
        return Match(affine, (*(way.product for way in ways), *behind), ways)

    def apply(self, match: Match, numbers: Numbers) -> Rewritten | Refusal:
        """Return the weights of every product, with its bias, border or ones."""
        affine, ways = match.affine, match.route
        s, t = affine_numbers(affine, numbers)
        if not isinstance(ways, tuple):
            raise TypeError("this match comes from another rewrite")
        given = Carried(affine_of(affine).axis, s, t)
        new: dict[str, LinearNumbers] = {}
        for way in ways:
            if linear_of(way.product).sees_all and not _zeros_before(way):
                own = numbers_ahead(affine, (way,), given, numbers)
            else:
                own = _padded(affine, way, given, numbers)
            if isinstance(own, Refusal):
                return own
            new.update(own)
        bypass = (affine.name, affine_of(affine).data)
        without = (way.product.module for way in ways if way.behind is not None and way.behind.name in new)
        changed = tuple(dict.fromkeys((*changed_ahead(ways), *without)))
        return Rewritten(new, (bypass,), pattern_ahead(match.affine, ways), float(np.abs(s).max(initial=0.0)), "ahead", changed)


def _padded(affine: Operator, way: WayAhead, given: Carried, numbers: Numbers) -> dict[str, LinearNumbers] | Refusal:
    zeros, product, role = _zeros_before(way), way.product, linear_of(way.product)
    carried = carried_ahead(affine, replace(way, steps=way.steps[:-1]) if zeros else way, given)
    if isinstance(carried, Refusal):
        return carried
    have = numbers.of(product)
    if not np.any(carried.t != 0.0):
        return {product.name: have.ahead(role, carried.s)}
    if role.window is None or role.output_axis != 1 or role.input_axis != 1:
        return Refusal(affine.module, RefusalReason.PADDED, (product.label,), f"{product.label}: its window is not known")
    taps = shift_of_each_tap(have.weight, carried.t, groups=role.groups, is_transposed=role.is_transposed)
    inside = _inside(way, zeros)
    if inside is not None:
        border, scaled = shift_of_each_place(taps, inside), have.ahead(role, carried.s)
        if way.behind is None:
            return {product.name: scaled.added(border=border)}
        after = numbers.of(way.behind)
        return {product.name: scaled, way.behind.name: after.added(border=map_at_each_place(after.weight, border, linear_of(way.behind).groups))}
    if zeros:
        detail = f"{product.label} pads with zeros, and the size of what it reads is known at run time only"
        return Refusal(affine.module, RefusalReason.PADDED, (product.label,), detail)
    return {product.name: have.ahead(role, carried.s).added(ones=taps[:, None])}


def _behind(graph: AbstractGraph, affine: Operator, product: Operator) -> Operator | None:
    """Return the convolution of one tap that alone reads what ``product`` makes, if it makes no more channels; None where there is none."""
    if linear_of(product).sees_all or not is_private(graph, product.output):
        return None
    user = graph.users_of(product.output)[0]
    role, window = user.role, user.role.window if isinstance(user.role, Linear) else None
    if not isinstance(role, Linear) or window is None or role.is_transposed or role.data != product.output or not role.sees_all:
        return None
    if any(size != 1 for size in (*window.kernel, *window.stride)) or user.inputs.count(product.output) != 1:
        return None
    channels, given = (graph.values[name].shape[1] for name in (user.output, product.output))
    is_larger = not isinstance(channels, int) or not isinstance(given, int) or channels > given
    return None if is_larger or objection_to_numbers(graph, affine, user) is not None else user


def _zeros_before(way: WayAhead) -> tuple[int, ...]:
    """Return the zeros that the last step puts in front along each axis; empty where it is no such step."""
    role = way.steps[-1].role if way.steps else None
    return role.zeros_before if isinstance(role, KeepsChannels) else ()


def _inside(way: WayAhead, zeros: tuple[int, ...]) -> list[Float64] | None:
    """Return which taps are inside along each axis; None where a size is not known."""
    role = linear_of(way.product)
    window = role.window
    if window is None:
        return None
    found = []
    for axis, (taps, stride, padding, dilation) in enumerate(
        zip(window.kernel, window.stride, window.padding, window.dilation, strict=True), start=2
    ):
        size, output_size = way.source_sizes[axis] if zeros else way.sizes[axis], way.output_sizes[axis]
        if not isinstance(size, int) or not isinstance(output_size, int):
            return None
        before = padding + (zeros[axis] if zeros else 0)
        found.append(places_inside(size, output_size, taps, stride=stride, before=before, dilation=dilation, is_transposed=role.is_transposed))
    return found
