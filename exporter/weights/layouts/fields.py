"""Reading single values of a checkpoint that may have any type."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping

from exporter.artifacts import Node, ObjectRef, TensorRef
from exporter.tensors import TensorReader, read_integer
from exporter.weights.blend import Blend

__all__ = ["argument", "count", "number", "plain", "size", "text"]

MAX_SIZE = 1 << 20
"""No model has more classes or channels."""
_MAX_ITEMS = 16

_MAX_STORAGE_BYTES = 1 << 20
"""A counter is read with all of its storage, for the checksum: one inside of a large storage is no counter of a trainer."""
_FLOATS = {"float64": "<d", "float32": "<f", "float16": "<e"}


def argument(arguments: Node, name: str) -> Node:
    """Return an entry of saved training arguments: a mapping or a pickled ``argparse.Namespace``."""
    if isinstance(arguments, ObjectRef):
        arguments = arguments.state
    return arguments.get(name) if isinstance(arguments, Mapping) else None


def count(node: Node | Blend) -> int | None:
    """Return a number of updates, written as an integer or an integer tensor; None for anything else or below 0."""
    value = (read_integer(node) if node.storage.size_bytes <= _MAX_STORAGE_BYTES else None) if isinstance(node, TensorRef) else node
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def size(node: Node) -> int | None:
    """Return a number of classes or channels; None for anything else, and for more than a model has."""
    return node if type(node) is int and 0 < node <= MAX_SIZE else None


def number(node: Node | Blend, *, above: float = 0.0, below: float = math.inf) -> float | None:
    """Return a number between the bounds, written as such or as a floating tensor of one element; None for anything else."""
    if isinstance(node, TensorRef):
        node = _single_float(node)
    if isinstance(node, bool) or not isinstance(node, (int, float)):
        return None
    value = float(node) if abs(node) < 1 << 63 else math.nan
    return value if above < value < below else None


def _single_float(ref: TensorRef) -> float | None:
    if ref.dtype not in _FLOATS or ref.num_elements != 1 or ref.storage.size_bytes > _MAX_STORAGE_BYTES:
        return None
    with TensorReader() as reader:
        content = b"".join(bytes(part) for part in reader.chunks(ref))
    return float(struct.unpack(_FLOATS[ref.dtype], content)[0])


def text(node: Node) -> str:
    """Return short printable text, empty for anything else."""
    return node if isinstance(node, str) and len(node) <= 200 and node.isprintable() else ""


def plain(node: Node) -> object:
    """Return a number, a truth value, short text, or a short list of them; None for anything else."""
    if isinstance(node, (list, tuple)):
        values = [_scalar(item) for item in node[:_MAX_ITEMS]]
        return values if len(node) == len(values) and None not in values else None
    return _scalar(node)


def _scalar(node: Node) -> object:
    if isinstance(node, (bool, str)):
        return node if isinstance(node, bool) else text(node) or None
    return node if isinstance(node, (int, float)) and abs(node) <= MAX_SIZE else None
