"""Layouts that other distributions register through the entry point group ``exporter.layouts``.

A distribution that is installed beside this one names its layouts in its own metadata; they are asked before the built-in ones.
Installing it is the decision to run its code; nothing in a checkpoint can bring a layout with it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifacts import Checkpoint
from exporter.errors import LayoutError
from exporter.weights.layout import Layout, Match

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["registered_layouts", "registered_versions"]

GROUP = "exporter.layouts"
_HELP = "install a release that fits this version of exporter, or uninstall it"


def registered_layouts() -> tuple[Layout, ...]:
    """Return the layouts of other distributions, by name of their entry points.

    Raises:
        LayoutError: one cannot be imported, or is no ``Layout`` (E224); so does ``read`` of one that returns no ``Match``.
    """
    return tuple(_load(entry) for entry in _entries(tuple(sys.path)))


def registered_versions() -> tuple[str, ...]:
    """Return ``entry point = distribution version`` for each: they decide how a checkpoint is read."""
    return tuple(f"{entry.name} = {_distribution(entry)}" for entry in _entries(tuple(sys.path)))


@functools.lru_cache(maxsize=1)
def _entries(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    if not any(_may_register(folder) for folder in path):
        return ()
    from importlib.metadata import entry_points

    return tuple(sorted(entry_points(group=GROUP), key=lambda entry: entry.name))


def _may_register(folder: str) -> bool:
    """Return whether a distribution in the folder may have our group: a quick look that spares most starts the import of metadata."""
    try:
        names = [entry.name for entry in os.scandir(folder or ".")]
    except FileNotFoundError:
        return False
    except OSError:  # an archive, or a folder that cannot be listed
        return True
    for name in names:
        if name.endswith((".dist-info", ".egg-info")):
            with contextlib.suppress(OSError):
                if GROUP.encode() in Path(folder, name, "entry_points.txt").read_bytes():
                    return True
    return folder.endswith(".egg")


def _load(entry: EntryPoint) -> Layout:
    facts: dict[str, object] = {"entry point": f"{entry.name} = {entry.value}", "distribution": _distribution(entry)}
    try:
        layout = entry.load()
    except (ImportError, AttributeError) as err:
        raise LayoutError("E224", "a registered layout cannot be used", facts={**facts, "found": err}, help=_HELP) from err
    if not isinstance(layout, Layout):
        facts |= {"found": type(layout).__name__, "expected": "a Layout of exporter.weights.layout"}
        raise LayoutError("E224", "a registered layout cannot be used", facts=facts, help=_HELP)
    return replace(layout, read=functools.partial(_checked, layout, facts))


def _checked(layout: Layout, facts: Mapping[str, object], checkpoint: Checkpoint) -> Match | None:
    match: object = layout.read(checkpoint)
    if match is None or isinstance(match, Match):
        return match
    found = {"found": type(match).__name__, "expected": "a Match of exporter.weights.layout, or None"}
    raise LayoutError("E224", "a registered layout cannot be used", facts={**facts, **found}, help=_HELP)


def _distribution(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "unknown"
