"""Optimizer slots: tensors beside the weights that are never weights."""

from __future__ import annotations

from collections.abc import Mapping

from exporter.artifacts import Node, OptimizerSlot, TensorRef, brief, walk

__all__ = ["optimizer_slots"]


def optimizer_slots(root: Node) -> tuple[OptimizerSlot, ...]:
    """Return the slots of every optimizer below ``root``; an optimizer is a mapping with ``state`` and ``param_groups``."""
    slots: list[OptimizerSlot] = []
    seen: set[int] = set()  # what several optimizers share is looked at once
    for at, node in walk(root):
        if not isinstance(node, Mapping) or "param_groups" not in node:
            continue
        state = node.get("state")
        tensors: dict[str, list[TensorRef]] = {}
        for per_parameter in state.values() if isinstance(state, Mapping) and id(state) not in seen else ():
            for slot, value in per_parameter.items() if isinstance(per_parameter, Mapping) and id(per_parameter) not in seen else ():
                if isinstance(value, TensorRef):
                    tensors.setdefault(brief(slot), []).append(value)
            seen.add(id(per_parameter))
        seen.add(id(state))
        for slot, refs in tensors.items():
            storages = {ref.storage for ref in refs}
            slots.append(OptimizerSlot(at, slot, len(refs), sum(storage.size_bytes for storage in storages)))
    return tuple(slots)
