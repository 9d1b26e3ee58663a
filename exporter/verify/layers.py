"""A layer's output as seen inside a program, and how layers of two programs are matched: by module name and call.

(path, k)       the output of the k-th call of a module that calls no other module
(path, op, k)   the k-th use of ``op`` directly in the forward of a module that does
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from exporter.runners.base import Array

__all__ = ["LayerKey", "Observed", "RawNode", "assign_keys"]

LayerKey: TypeAlias = "tuple[str, int] | tuple[str, str, int]"


@dataclass(frozen=True, slots=True)
class RawNode:
    """A node before matching.

    Attributes:
        node: name in its graph.
        path: name of the module whose code contains it; empty for the model itself.
        call: which call of that module; None where the graph does not say.
        op: ``aten.conv2d.default``, or ``Conv`` in ONNX.
    """

    node: str
    path: str
    call: int | None
    op: str


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """One node of a program with its value.

    Attributes:
        key: None where the node stands for no layer of its own.
        value: None where it was not observed.
        producers: names of the nodes that it reads.
        number: position among the program's operators, from 1.
        is_rounded: it is stored in half precision, or comes from a value that is.
    """

    node: str
    op: str
    key: LayerKey | None
    value: Array | None
    producers: tuple[str, ...]
    number: int
    is_rounded: bool = False


def assign_keys(nodes: Sequence[RawNode]) -> dict[str, LayerKey]:
    """Return node name -> key for the nodes that are the output of a layer."""
    paths = {node.path for node in nodes}
    inner = {parent for path in paths for parent in _parents(path)}
    keys: dict[str, LayerKey] = {}
    for node in nodes:
        if node.path not in inner and node.call is not None:
            keys[node.node] = (node.path, node.call)
    last = {key: name for name, key in keys.items()}  # of the nodes of one call, the last is its output
    keys = {name: key for name, key in keys.items() if last[key] == name}
    counts: Counter[tuple[str, str]] = Counter()
    for node in nodes:
        if node.path in inner or node.call is None:
            op = _family(node.op)
            keys[node.node] = (node.path, op, counts[node.path, op])
            counts[node.path, op] += 1
    return keys


def _family(op: str) -> str:
    """Return ``add`` for ``aten.add.Tensor`` and for ONNX's ``Add``."""
    return op.split(".")[1] if op.startswith("aten.") else op.lower()


def _parents(path: str) -> Iterable[str]:
    if path:
        yield ""
    steps = path.split(".")
    for count in range(1, len(steps)):
        yield ".".join(steps[:count])
