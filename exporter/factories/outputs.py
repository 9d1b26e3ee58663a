"""A network's own names for what it returns.

Keys of dictionaries and fields of named tuples become names, joined with a full stop where they are nested; positions in plain tuples
and lists become ``output``, ``output_1``, ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils import _pytree as pytree

__all__ = ["names_of_outputs"]


def names_of_outputs(tree: pytree.TreeSpec) -> list[str]:
    """Return a name for every leaf of ``tree``, in its order."""
    structure = pytree.tree_unflatten(list(range(tree.num_leaves)), tree)
    paths = [path for _, path in sorted(_leaves(structure, ()))]
    names: list[str] = []
    num_plain = 0
    for path in paths:
        if all(isinstance(step, int) for step in path):
            names.append(f"output_{num_plain}" if num_plain else "output")
            num_plain += 1
        else:
            names.append(".".join(str(step) for step in path))
    return names


def _leaves(structure: Any, path: tuple[str | int, ...]) -> Iterator[tuple[int, tuple[str | int, ...]]]:  # noqa: ANN401 - any container
    if isinstance(structure, int):
        yield structure, path
        return
    steps: list[tuple[str | int, Any]]
    if isinstance(structure, Mapping):
        steps = [(str(key), value) for key, value in structure.items()]
    elif hasattr(structure, "_fields"):
        steps = [(name, getattr(structure, name)) for name in structure._fields]
    elif dataclasses.is_dataclass(structure):
        steps = [(entry.name, getattr(structure, entry.name)) for entry in dataclasses.fields(structure)]
    elif isinstance(structure, (list, tuple)):
        steps = list(enumerate(structure))
    else:
        return
    for step, value in steps:
        yield from _leaves(value, (*path, step))
