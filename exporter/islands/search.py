"""The smallest set of items that makes something pass, by bisecting over how many of the first ones are in it.

``fails(all)`` is empty and ``fails(none)`` is not. The smallest k such that the first k items pass makes item k one that is needed beside
those before it; it is kept, and the search goes on among those before it until what is kept passes alone. In the end each is taken out
once more. It is taken for granted nowhere that more items never do harm: what is returned was seen to pass, and each of its items was
seen to be needed. That no other set is smaller follows only where more items do no harm.
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
        why: item -> how the rest failed; what was found until then where the search ended early.
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
        return search.run(start)
    except OutOfTrialsError:
        return search.result(is_minimal=False)


class _Search(Generic[Item]):
    def __init__(self, items: Sequence[Item], fails: Callable[[frozenset[Item]], str]) -> None:
        self._items, self._ask = tuple(items), fails
        self._known: dict[frozenset[Item], str] = {}
        self._best: frozenset[Item] | None = None
        self._why: dict[Item, str] = {}

    def run(self, start: Sequence[Item]) -> Found[Item]:
        kept = list(start)
        if self._fails(kept):
            hopeless = self._fails(self._items)
            if hopeless:
                return Found(None, is_minimal=False, why={}, hopeless=hopeless)
            self._bisect(kept)
        self._take_out(kept)
        return self.result(is_minimal=True)

    def result(self, *, is_minimal: bool) -> Found[Item]:
        items = None if self._best is None else tuple(item for item in self._items if item in self._best)
        return Found(items, is_minimal, {item: self._why[item] for item in self._items if item in self._why})

    def _fails(self, chosen: Sequence[Item]) -> str:
        key = frozenset(chosen)
        if key not in self._known:
            self._known[key] = self._ask(key)
            if not self._known[key] and (self._best is None or len(key) < len(self._best)):
                self._best = key
        return self._known[key]

    def _bisect(self, kept: list[Item]) -> None:
        """Add items to ``kept``, which fails, until it passes."""
        before = [item for item in self._items if item not in set(kept)]
        is_first = True
        while self._fails(kept):
            low, high = 0, len(before)  # kept with the first ``low`` fails, with the first ``high`` passes
            why = self._fails(kept)
            while high - low > 1:
                middle = (low + high) // 2 if is_first else high - 1  # those that are needed tend to be neighbours
                is_first = True
                failed = self._fails([*kept, *before[:middle]])
                low, high, why = (middle, high, failed) if failed else (low, middle, why)
            kept.append(before[low])
            self._why[before[low]] = why
            before = before[:low]
            is_first = False

    def _take_out(self, kept: list[Item]) -> None:
        """Take out of ``kept``, which passes, what it passes without, until each that is left is needed."""
        self._why = {item: why for item, why in self._why.items() if item in kept}
        has_changed = True
        while has_changed:
            has_changed = False
            for item in list(kept):
                why = self._fails([other for other in kept if other != item])
                if why:
                    self._why[item] = why
                else:
                    kept.remove(item)
                    self._why.pop(item, None)
                    has_changed = True
