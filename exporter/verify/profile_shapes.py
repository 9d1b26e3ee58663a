"""The shapes of an engine's profiles: those that parity is run at, and which feeds an engine takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from exporter.artifacts import Profile

__all__ = ["Shapes", "corners", "nearest_batch", "rows_of", "takes"]

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Input -> shape with the batch axis."""


def corners(profiles: Iterable[Profile]) -> Iterator[Shapes]:
    """Yield the smallest, the optimal and the largest shapes of every profile, each once."""
    seen = set()
    for profile in profiles:
        for which in range(3):
            shapes = {name: three[which] for name, three in profile.shapes.items()}
            key = tuple(sorted(shapes.items()))
            if key not in seen:
                seen.add(key)
                yield shapes


def rows_of(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the shapes without the batch axis."""
    return {name: shape[1:] for name, shape in shapes.items()}


def takes(profiles: Iterable[Profile], shapes: Shapes) -> bool:
    """Whether one of ``profiles`` allows ``shapes``."""
    return any(all(_within(profile, name, shape) for name, shape in shapes.items()) for profile in profiles)


def nearest_batch(profiles: Iterable[Profile], rows: Shapes, batch: int) -> int:
    """Return ``batch``, or the nearest one that a profile allows for these rows; ``batch`` where none allows the rows at all."""
    spans = []
    for profile in profiles:
        if all(_within(profile, name, (profile.shapes[name][0][0], *row)) for name, row in rows.items() if name in profile.shapes):
            smallest, _, largest = next(iter(profile.shapes.values()))
            spans.append((smallest[0], largest[0]))
    inside = [min(max(batch, low), high) for low, high in spans]
    return min(inside, key=lambda found: abs(found - batch), default=batch)


def _within(profile: Profile, name: str, shape: tuple[int, ...]) -> bool:
    if name not in profile.shapes:
        return True
    smallest, _, largest = profile.shapes[name]
    return len(shape) == len(smallest) and all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True))
