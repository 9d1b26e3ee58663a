"""Sums of branches: their terms, the sums that go when terms go, and where the taps of one kernel lie in another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exporter.graph.abstract import AbstractGraph, Linear, Operator, Window
from exporter.graph.rewrites.contract import Bypass, linear_of
from exporter.graph.through import KeepsChannels, Sum

__all__ = [
    "Term",
    "flat_taps",
    "identity_window",
    "is_branch",
    "is_private",
    "outermost_sum",
    "places_in",
    "removal_of",
    "same_products",
    "terms_of",
    "window_of",
]


@dataclass(frozen=True, slots=True)
class Term:
    """A value that is added up, or taken away where ``sign`` is -1."""

    value: str
    sign: int


def outermost_sum(graph: AbstractGraph, value: str) -> Operator | None:
    """Return the last of the sums in a row that read ``value``, which nothing else reads."""
    found = None
    while is_private(graph, value):
        user = graph.users_of(value)[0]
        if user.inputs.count(value) != 1 or not (isinstance(user.role, Sum) or _is_nothing(user)):
            break
        found, value = user if isinstance(user.role, Sum) else found, user.output
    return found


def is_private(graph: AbstractGraph, value: str) -> bool:
    """Return whether one operator alone reads ``value``."""
    return len(graph.users_of(value)) == 1 and not graph.values[value].is_output


def terms_of(graph: AbstractGraph, value: str, sign: int = 1) -> list[Term]:
    """Return what is added up to ``value``, through sums that nothing else reads."""
    producer = graph.producer_of(value)
    if producer is None or not isinstance(producer.role, Sum):
        return [Term(value, sign)]
    terms: list[Term] = []
    for number, part in enumerate(producer.role.parts):
        own = -sign if number == 1 and producer.role.is_difference else sign
        terms += terms_of(graph, _made_of(graph, part), own) if is_private(graph, part) else [Term(part, own)]
    return terms


def removal_of(graph: AbstractGraph, root: Operator, gone: set[str]) -> tuple[Bypass, ...] | None:
    """Return the sums that lose one of their two terms, with what is left of each, from the inside outwards.

    None where a difference would lose what something is taken from, or nothing would be left.
    """
    bypasses: list[Bypass] = []

    def rest(value: str) -> str | None:
        """Return the value that stands for ``value`` once the terms are gone, empty where nothing is left, None where it cannot be done."""
        if _made_of(graph, value) in gone:
            return ""
        producer = graph.producer_of(value)
        if producer is None or not isinstance(producer.role, Sum) or (producer is not root and not is_private(graph, value)):
            return value
        one, other = (rest(part) for part in producer.role.parts)
        if one is None or other is None or (producer.role.is_difference and not one and other):
            return None
        if one and other:
            return value
        if one or other:
            bypasses.append((producer.name, one or other))
        return one or other

    return tuple(bypasses) if rest(root.output) else None


def is_branch(graph: AbstractGraph, producer: Operator, data: str) -> bool:
    """Return whether an operator is a convolution of ``data`` that one operator alone reads."""
    role = producer.role
    return (
        isinstance(role, Linear) and role.data == data and role.window is not None and not role.is_transposed and is_private(graph, producer.output)
    )


def same_products(one: Operator, other: Operator) -> bool:
    """Return whether two convolutions have the same groups and strides."""
    return linear_of(one).groups == linear_of(other).groups and window_of(one).stride == window_of(other).stride


def window_of(product: Operator) -> Window:
    """Return the window of a convolution."""
    window = linear_of(product).window
    if window is None:
        raise TypeError(f"{product.label} is no convolution")
    return window


def identity_window(like: Operator) -> Window:
    """Return the window of the input itself, with as many axes as that of ``like``."""
    axes = len(window_of(like).kernel)
    return Window((1,) * axes, (1,) * axes, (0,) * axes, (1,) * axes)


def places_in(small: Window, large: Window) -> list[tuple[int, ...]] | None:
    """Return for every tap of ``small`` the tap of ``large`` that looks at the same place, None where there is not one for each."""
    if small.stride != large.stride or len(small.kernel) != len(large.kernel):
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


def flat_taps(small: Window, large: Operator) -> list[int]:
    """Return for every tap of ``small`` the number of its place among the taps of ``large``, counted in row-major order."""
    places = places_in(small, window_of(large))
    if places is None:
        raise ValueError("the kernel does not fit")
    return [int(np.ravel_multi_index(tap, window_of(large).kernel)) for tap in places]


def _is_nothing(operator: Operator) -> bool:
    """Return whether an operator hands its input on as it is, as ``0 + x`` does."""
    return isinstance(operator.role, KeepsChannels) and not operator.role.mixed


def _made_of(graph: AbstractGraph, value: str) -> str:
    """Return what ``value`` is, without operators that do nothing."""
    while (producer := graph.producer_of(value)) is not None and isinstance(producer.role, KeepsChannels) and _is_nothing(producer):
        if not is_private(graph, producer.role.data):
            break
        value = producer.role.data
    return value
