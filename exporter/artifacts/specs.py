"""Name, shape and dtype of a tensor."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TensorSpec"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and dtype of a tensor; a string in the shape is a dynamic axis."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str
