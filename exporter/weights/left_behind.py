"""What a bake leaves in the checkpoint, in bytes of storage."""

from __future__ import annotations

from collections.abc import Iterable

from exporter.artifacts import Checkpoint, Node, StorageRef, TensorRef, walk
from exporter.weights.blend import Source, inputs_of
from exporter.weights.layout import Match
from exporter.weights.plan import BakePlan
from exporter.weights.state_dicts import child

__all__ = ["left_behind"]


def left_behind(checkpoint: Checkpoint, match: Match, plan: BakePlan) -> dict[str, int]:
    """Return what was not written -> bytes: ``optimizer``, ``raw weights``, ``ema NAME``, ``other tensors``; nothing twice."""
    counted = {ref.storage for planned in plan.tensors for ref in inputs_of(planned.source)}
    groups: list[tuple[str, Iterable[Source]]] = []
    if match.raw is not None:
        groups.append(("raw weights", match.raw.tensors.values()))
    groups += [(f"ema {average.name}", average.weights.tensors.values()) for average in match.averages]
    optimizers = [node for _, node in walk(checkpoint.root) if child(node, "param_groups") is not None]
    groups.append(("optimizer", _tensors(optimizers)))
    groups.append(("other tensors", _tensors(checkpoint.root)))
    left: dict[str, int] = {}
    for label, refs in groups:
        storages: set[StorageRef] = {ref.storage for source in refs for ref in inputs_of(source)} - counted
        counted |= storages
        if storages:
            left[label] = left.get(label, 0) + sum(storage.size_bytes for storage in storages)
    return left


def _tensors(node: Node) -> Iterable[TensorRef]:
    return [item for _, item in walk(node) if isinstance(item, TensorRef)]
