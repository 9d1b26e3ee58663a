"""Names of dynamic axes: torch calls them ``s77``, the model's inputs call them ``batch``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import onnx_ir as ir

from exporter.artifacts import TensorSpec

__all__ = ["fix_batch_", "name_axes_"]


def name_axes_(model: ir.Model, inputs: tuple[TensorSpec, ...]) -> None:
    """Give the symbolic axes of every value the names that ``inputs`` use for them."""
    names: dict[str, str] = {}
    for value, spec in zip(model.graph.inputs, inputs, strict=True):
        for dim, size in zip(value.shape or (), spec.shape, strict=True):
            if isinstance(size, str) and isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                names[str(dim.value)] = size

    def renamed(text: str) -> str:
        return re.sub(r"\b[A-Za-z_]\w*\b", lambda match: names.get(match[0], match[0]), text)

    _replace_dims_(model, renamed)


def fix_batch_(model: ir.Model) -> None:
    """Fix the axis called ``batch`` at 1 everywhere."""
    _replace_dims_(model, lambda text: 1 if text == "batch" else (None if re.search(r"\bbatch\b", text) else text))


def _replace_dims_(model: ir.Model, replace: Callable[[str], str | int | None]) -> None:
    for value in _values(model):
        if value.shape is None or value.shape.is_static():
            continue
        dims = [replace(str(dim.value)) if isinstance(dim, ir.SymbolicDim) and dim.value is not None else dim for dim in value.shape]
        value.shape = ir.Shape(dims)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from _outputs_of(model.graph.all_nodes())


def _outputs_of(nodes: Iterable[ir.Node]) -> Iterator[ir.Value]:
    for node in nodes:
        yield from node.outputs
