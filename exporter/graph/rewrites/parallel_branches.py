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
from exporter.graph.abstract import AbstractGraph, Linear, Operator, Window
from exporter.graph.rewrites.contract import Bypass, Match, Numbers, Rewritten, affine_numbers, linear_of
from exporter.graph.rewrites.objections import affine_of, objection_to_numbers, objection_to_statistics
from exporter.graph.through import KeepsChannels, Sum

__all__ = ["ParallelBranches"]


@dataclass(frozen=True, slots=True)
class _Branches:
    """The convolution that takes everything, the others, and the sums that go, from the BatchNorm outwards."""

    kept: Operator
    merged: tuple[Operator, ...]
    bypasses: tuple[Bypass, ...]


class ParallelBranches:
    """Fold ``s x + t`` and the convolutions beside it into one convolution of ``x``."""

    def requires(self, graph: AbstractGraph, affine: Operator) -> Match | Refusal:
        """Return the branches that become one, or the first reason against it."""
        refusal = objection_to_statistics(graph, affine)
        if refusal is not None:
            return refusal
        role = affine_of(affine)
        root = _outermost_sum(graph, affine.output)
        if root is None or role.axis != 1:
            return Refusal(
                affine.module, RefusalReason.NOT_LINEAR, tuple(user.label for user in graph.users_of(affine.output)), "it is no branch of a sum"
            )
        terms = _terms(graph, root.output)
        products = [producer for term in terms if (producer := graph.producer_of(term)) is not None and _is_branch(graph, producer, role.data)]
        products = [product for product in products if objection_to_numbers(graph, affine, product) is None]
        fitting = [product for product in products if _place(_identity(linear_of(product)), linear_of(product).window) is not None]
        if not fitting:
            return Refusal(affine.module, RefusalReason.NOT_LINEAR, (root.label,), "no convolution of the same input is added to it")
        kept = max(fitting, key=lambda product: np.prod(_window(product).kernel))
        merged = tuple(
            product
            for product in products
            if product.name != kept.name and _same_products(kept, product) and _place(_window(product), _window(kept)) is not None
        )
        gone = {affine.output, *(product.output for product in merged)}
        return Match(affine, (kept, *merged), _Branches(kept, merged, _bypasses(graph, root, gone)))

    def apply(self, match: Match, numbers: Numbers) -> Rewritten | Refusal:
        """Return the one kernel and its bias."""
        branches = match.route
        if not isinstance(branches, _Branches):
            raise TypeError("this match comes from another rewrite")
        s, t = affine_numbers(match.affine, numbers)
        kept, role = branches.kept, linear_of(branches.kept)
        weight, bias = np.array(numbers.weight(kept), order="C"), numbers.bias(kept)
        total = t if bias is None else bias + t
        if weight.shape[0] != s.size or weight.shape[1] * role.groups != s.size:
            detail = f"{kept.label} has {weight.shape[1] * role.groups} channels in and {weight.shape[0]} out"
            return Refusal(match.affine.module, RefusalReason.WRONG_AXIS, (kept.label,), detail)
        place = _place(_identity(role), role.window)
        if place is None:
            raise ValueError("requires() let a kernel without a tap for the BatchNorm through")
        taps = weight.reshape(*weight.shape[:2], -1)  # a view: one axis for all taps
        flat = [int(np.ravel_multi_index(tap, weight.shape[2:])) for tap in place]
        channels = np.arange(s.size)
        taps[channels, channels % weight.shape[1], flat[0]] += s
        for product in branches.merged:
            places = _place(_window(product), _window(kept))
            if places is None:
                raise ValueError("requires() let a kernel through that does not fit")
            small, added = numbers.weight(product), numbers.bias(product)
            taps[:, :, [int(np.ravel_multi_index(tap, weight.shape[2:])) for tap in places]] += small.reshape(*small.shape[:2], -1)
            total = total if added is None else total + added
        kinds = "+".join((kept.kind, *(product.kind for product in branches.merged), "bn"))
        return Rewritten({kept.name: (weight, total)}, branches.bypasses, f"sum of {kinds}", float(np.abs(s).max(initial=0.0)))


def _outermost_sum(graph: AbstractGraph, value: str) -> Operator | None:
    """Return the last of the sums in a row that read ``value``, which nothing else reads."""
    found = None
    while _is_private(graph, value):
        user = graph.users_of(value)[0]
        if user.inputs.count(value) != 1 or not (isinstance(user.role, Sum) or _is_nothing(user)):
            break
        found, value = user if isinstance(user.role, Sum) else found, user.output
    return found


def _is_private(graph: AbstractGraph, value: str) -> bool:
    return len(graph.users_of(value)) == 1 and not graph.values[value].is_output


def _is_nothing(operator: Operator) -> bool:
    """Return whether an operator hands its input on as it is, as ``0 + x`` does."""
    return isinstance(operator.role, KeepsChannels) and not operator.role.mixed


def _made_of(graph: AbstractGraph, value: str) -> str:
    """Return what ``value`` is, without operators that do nothing."""
    while (producer := graph.producer_of(value)) is not None and isinstance(producer.role, KeepsChannels) and _is_nothing(producer):
        if not _is_private(graph, producer.role.data):
            break
        value = producer.role.data
    return value


def _terms(graph: AbstractGraph, value: str) -> list[str]:
    """Return what is added up to ``value``, through sums that nothing else reads."""
    producer = graph.producer_of(value)
    if producer is None or not isinstance(producer.role, Sum):
        return [value]
    terms: list[str] = []
    for part in producer.role.parts:
        terms += _terms(graph, _made_of(graph, part)) if _is_private(graph, part) else [part]
    return terms


def _is_branch(graph: AbstractGraph, producer: Operator, data: str) -> bool:
    role = producer.role
    if not isinstance(role, Linear) or role.data != data or role.window is None or role.is_transposed:
        return False
    return _is_private(graph, producer.output)


def _same_products(one: Operator, other: Operator) -> bool:
    return linear_of(one).groups == linear_of(other).groups and _window(one).stride == _window(other).stride


def _window(product: Operator) -> Window:
    window = linear_of(product).window
    if window is None:
        raise TypeError(f"{product.label} is no convolution")
    return window


def _identity(role: Linear) -> Window:
    """Return the window of ``x`` itself."""
    axes = len(role.window.kernel) if role.window is not None else 0
    return Window((1,) * axes, (1,) * axes, (0,) * axes, (1,) * axes)


def _place(small: Window, large: Window | None) -> list[tuple[int, ...]] | None:
    """Return for every tap of ``small`` the tap of ``large`` that looks at the same place, None where there is not one for each."""
    if large is None or small.stride != large.stride or len(small.kernel) != len(large.kernel):
        return None
    places = []
    for index in np.ndindex(*small.kernel):
        place = []
        for axis, tap in enumerate(index):
            offset = small.dilation[axis] * tap - small.padding[axis] + large.padding[axis]
            number, rest = divmod(offset, large.dilation[axis])
            if rest or not 0 <= number < large.kernel[axis]:
                return None
            place.append(number)
        places.append(tuple(place))
    return places


def _bypasses(graph: AbstractGraph, root: Operator, gone: set[str]) -> tuple[Bypass, ...]:
    """Return the sums that lose one of their two terms, with what is left of each, from the inside outwards."""
    bypasses: list[Bypass] = []

    def rest(value: str) -> str | None:
        """Return the value that stands for ``value`` once the terms are gone, None where nothing is left of it."""
        if _made_of(graph, value) in gone:
            return None
        producer = graph.producer_of(value)
        if producer is None or not isinstance(producer.role, Sum) or (producer is not root and not _is_private(graph, value)):
            return value
        left = [remaining for part in producer.role.parts if (remaining := rest(part)) is not None]
        if len(left) == len(producer.role.parts):
            return value
        if not left:
            return None
        bypasses.append((producer.name, left[0]))
        return left[0]

    rest(root.output)
    return tuple(bypasses)
