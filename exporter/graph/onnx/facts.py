"""What is known of a model while its nodes are read: types, constants, the version of the standard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from exporter.graph.onnx.constants import Known
from exporter.graph.onnx.shapes import TensorType

__all__ = ["Facts"]


@dataclass(frozen=True, slots=True)
class Facts:
    """Types of values, constants, and the version of the standard that nodes are written in."""

    types: Mapping[str, TensorType]
    known: Known
    opset: int

    def shape(self, value: ir.Value | None) -> tuple[int | str, ...] | None:
        """Return the shape of a value, None where its rank is not known."""
        found = None if value is None else self.types.get(value.name or "")
        return None if found is None else found.shape

    def sizes(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Return the shape of a value whose sizes are all known."""
        shape = self.shape(value)
        if shape is None:
            return None
        sizes = tuple(size for size in shape if isinstance(size, int))
        return sizes if len(sizes) == len(shape) else None

    def rank(self, value: ir.Value | None) -> int:
        """Return the number of axes of a value, -1 where it is not known."""
        shape = self.shape(value)
        return -1 if shape is None else len(shape)

    def dtype(self, value: ir.Value | None) -> str:
        """Return the dtype of a value, empty where it is not known."""
        found = None if value is None else self.types.get(value.name or "")
        return "" if found is None else found.dtype

    def integers(self, node: ir.Node, name: str, position: int) -> tuple[int, ...] | None:
        """Return whole numbers that are an attribute up to some version of the standard, and an input from it on; None where absent or computed."""
        if position < len(node.inputs) and node.inputs[position] is not None:
            return self.known.integers(node.inputs[position])
        given = node.attributes.get_ints(name, None)
        return None if given is None else tuple(given)

    def is_given(self, node: ir.Node, position: int) -> bool:
        """Return whether a node has an input at a position."""
        return position < len(node.inputs) and node.inputs[position] is not None
