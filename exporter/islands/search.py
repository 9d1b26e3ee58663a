"""The smallest set of items that makes something pass, by bisecting over items in an order.

    1. end        the smallest k such that the first k items pass: item k is needed beside those before it
    2. front      the largest j such that items j to k pass: item j is needed beside those behind it
    3. between    with both kept, halves of what lies between are dropped where the rest passes without, and split where it does not
    4. take out   each item that is left is taken out once more, until none can be spared

Where a set is given to start with, the steps add to it what it lacks, and larger pieces of it are taken out before single ones.
It is taken for granted nowhere that more items never do harm: what is returned was seen to pass, and each of its items was seen to be
needed. That no other set is smaller follows only where more items do no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Found", "OutOfTrialsError", "smallest_set"]

Item = TypeVar("Item", bound=Hashable)


class OutOfTrialsError(Exception):
    """Raised by ``fails`` where no further set may be tried; the search ends with what it knows."""


@dataclass(frozen=True, slots=True)
class Found(Generic[Item]):
    """What a search knows.

    Attributes:
        items: of the smallest set that passed, in the order that was given; None where even all items fail, or no set could be tried.
        is_minimal: each item of it was taken out, and the rest failed.
        why: item -> how the rest failed without it; what was found until then where the search ended early.
        hopeless: how all items failed.
    """

    items: tuple[Item, ...] | None
    is_minimal: bool
    why: dict[Item, str]
    hopeless: str = ""


def smallest_set(items: Sequence[Item], fails: Callable[[frozenset[Item]], str], *, start: Sequence[Item] = ()) -> Found[Item]:
    """Search for the smallest set of ``items`` that passes.

    Args:
        items: in the order in which they are bisected.
        fails: how the set fails, empty where it passes; each set is asked for once.
        start: items that are thought to be needed.
    """
    search = _Search(items, fails)
    try:
        return search.run(list(start))
    except OutOfTrialsError:
        return search.result(is_minimal=False)


class _Search(Generic[Item]):
    def __init__(self, items: Sequence[Item], fails: Callable[[frozenset[Item]], str]) -> None:
        self._items, self._ask = tuple(items), fails
        self._known: dict[frozenset[Item], str] = {}
        self._best: frozenset[Item] | None = None
        self._why: dict[Item, str] = {}

    def run(self, start: list[Item]) -> Found[Item]:
        kept = start
        if self._fails(start):
            hopeless = self._fails(self._items)
            if hopeless:
                return Found(None, is_minimal=False, why={}, hopeless=hopeless)
            kept = self._added(start, [item for item in self._items if item not in set(start)])
        self._take_out(kept, size=max(1, len(start) // 2))
        return self.result(is_minimal=True)

    def result(self, *, is_minimal: bool) -> Found[Item]:
        items = None if self._best is None else tuple(item for item in self._items if item in self._best)
        return Found(items, is_minimal, {item: self._why[item] for item in items or () if item in self._why})

    def _fails(self, chosen: Sequence[Item]) -> str:
        key = frozenset(chosen)
        if key not in self._known:
            self._known[key] = self._ask(key)
            if not self._known[key] and (self._best is None or len(key) < len(self._best)):
                self._best = key
        return self._known[key]

    def _added(self, kept: list[Item], rest: list[Item]) -> list[Item]:
        """Return ``kept``, which fails, with some of ``rest``, which passes together with it, so that it passes."""
        low, high = 0, len(rest)
        while high - low > 1:  # kept with the first ``low`` fails, with the first ``high`` passes
            middle = (low + high) // 2
            low, high = (middle, high) if self._fails([*kept, *rest[:middle]]) else (low, middle)
        end = high
        low, high = 0, end
        while high - low > 1:  # kept with ``low`` to ``end`` passes, with ``high`` to ``end`` fails
            middle = (low + high) // 2
            low, high = (low, middle) if self._fails([*kept, *rest[middle:end]]) else (middle, high)
        ends = [rest[low], *([rest[end - 1]] if end - 1 > low else [])]
        between = rest[low + 1 : end - 1]
        return [*kept, *ends, *(self._needed([*kept, *ends], between) if between else [])]

    def _needed(self, kept: list[Item], rest: list[Item], *, is_news: bool = True) -> list[Item]:
        """Return those of ``rest`` with which ``kept`` passes, as it does with all of them.

        After Junker, QuickXplain (2004).

        Args:
            kept: what is kept.
            rest: not empty.
            is_news: whether ``kept`` is another set than the caller's, which fails.
        """
        if is_news and not self._fails(kept):
            return []
        if len(rest) == 1:
            return rest
        front, back = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        of_back = self._needed([*kept, *front], back)
        of_front = self._needed([*kept, *of_back], front, is_news=bool(of_back))
        return [*of_front, *of_back]

    def _take_out(self, kept: list[Item], *, size: int) -> None:
        """Take out of ``kept``, which passes, what it passes without, in pieces of ``size`` and smaller, until each that is left is needed."""
        while True:
            has_changed = False
            for piece in [kept[at : at + size] for at in range(0, len(kept), size)]:
                rest = [item for item in kept if item not in piece]
                why = self._fails(rest)
                if not why:
                    kept, has_changed = rest, True
                elif size == 1:
                    self._why[piece[0]] = why
            if size == 1 and not has_changed:
                return
            size = max(1, size // 2)
