"""Refusing trees that are small as a pickle and huge to look through, because their branches are one and the same."""

from __future__ import annotations

from collections.abc import Mapping

from exporter.artifacts import Checkpoint, Node
from exporter.errors import LayoutError

__all__ = ["refuse_repetition"]

_LEVELS = 5
_ALLOWED = 100_000


def refuse_repetition(checkpoint: Checkpoint) -> None:
    """Refuse a tree whose upper levels name the same containers over and over: layouts look into each place, as often as it is named.

    Raises:
        LayoutError: E160.
    """
    level: list[Node] = [checkpoint.root]
    seen: set[int] = set()
    entries = distinct = 0
    for _ in range(_LEVELS):
        below: list[Node] = []
        for node in level:
            values = list(node.values()) if isinstance(node, Mapping) else list(node) if isinstance(node, (list, tuple)) else []
            entries += len(values)
            if id(node) not in seen:
                seen.add(id(node))
                distinct += len(values)
            if entries > 2 * distinct + _ALLOWED:
                facts = {"file": checkpoint.path, "found": f"{entries} entries in {distinct} places", "expected": "each entry in one place, or a few"}
                raise LayoutError("E160", "the checkpoint names the same values over and over", facts=facts)
            below += [value for value in values if isinstance(value, (Mapping, list, tuple))]
        level = below
