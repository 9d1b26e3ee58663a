"""Artefacts as JSON."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.artifacts.provenance import Digest

__all__ = ["to_json"]


def to_json(value: Any) -> Any:  # noqa: ANN401 - any artefact goes in
    """Return ``value`` as plain JSON types; NaN and infinity become the strings ``"nan"``, ``"inf"`` and ``"-inf"``.

    Raises:
        TypeError: for a value that has no place in an artefact.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Digest):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no place in an artefact")
