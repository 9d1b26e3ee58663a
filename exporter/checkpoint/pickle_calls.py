"""Where in the tree the calls of a pickle stand, and how deep the tree is."""

from __future__ import annotations

from collections.abc import Mapping

from exporter.artifacts import GlobalRef, Node, ObjectRef, walk
from exporter.checkpoint.pickle_meanings import MalformedPickle

__all__ = ["MAX_DEPTH", "locate_calls"]

MAX_DEPTH = 256
"""Levels of containers; a module inside a module takes three."""


def locate_calls(tree: Node, calls: Mapping[int, list[tuple[GlobalRef, ObjectRef]]]) -> dict[str, GlobalRef]:
    """Return key path -> global for ``calls``; one that left nothing in the tree is named by its byte in the pickle.

    Raises:
        MalformedPickle: the tree is nested deeper than ``MAX_DEPTH`` (E111).
    """
    _check_depth(tree)
    if not calls:
        return {}
    wanted = {id(record) for found in calls.values() for _, record in found}
    places: dict[int, str] = {}
    for path, node in walk(tree):
        if id(node) in wanted:
            places.setdefault(id(node), path)
    located: dict[str, GlobalRef] = {}
    for position, found in calls.items():
        for callee, record in found:
            place = places.get(id(record), f"byte {position} of the pickle") or "the top of the file"
            located[place if place not in located else f"{place} (byte {position})"] = callee
    return located


def _check_depth(tree: Node) -> None:
    seen: set[int] = set()
    level: list[object] = [tree]
    for _ in range(MAX_DEPTH):
        following: list[object] = []
        for item in level:
            if id(item) in seen or not isinstance(item, (dict, list, tuple, set, frozenset, ObjectRef)):
                continue
            seen.add(id(item))
            if isinstance(item, ObjectRef):
                following += [item.args, item.state, item.items]
            else:
                following += item.values() if isinstance(item, dict) else item
        if not following:
            return
        level = following
    raise MalformedPickle(f"more than {MAX_DEPTH} levels of containers", code="E111")
