"""Finding a state dict in a tree: a mapping of names to tensors, or the inert record of a pickled module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

from exporter.artifacts import Node, ObjectRef, TensorRef
from exporter.errors import LayoutError
from exporter.tensors import DTYPES
from exporter.weights.blend import Blend, Source
from exporter.weights.layout import WeightSet

__all__ = ["as_weights", "child", "is_module", "own_names", "same_values", "with_tied"]

MAX_MODULES = 100_000
"""Module paths visited in a pickled module; shared submodules count once for every path, as in torch's state dict."""

_MAX_LEVELS, _MAX_STEPS, _MAX_PREFIX = 100, 1 << 21, 10_000
_TABLES = ("_parameters", "_buffers", "_modules")

_COMPILED, _WRAPPER, _MAX_WRAPPERS = "_orig_mod.", "module.", 16
_MAX_SHOWN = 8
_EXTRA_STATE = "_extra_state"


def child(node: Node, key: str) -> Node:
    """Return ``node[key]`` where ``node`` is a mapping that has it, else None."""
    return node.get(key) if isinstance(node, Mapping) else None


def is_module(node: Node) -> bool:
    """Return whether ``node`` is the record of a pickled ``torch.nn.Module``."""
    return isinstance(node, ObjectRef) and isinstance(_attributes(node).get("_modules"), Mapping) and "_parameters" in _attributes(node)


def as_weights(node: Node, at: str, *, remark: str = "") -> WeightSet | None:
    """Return the weights that ``node`` holds under their names as written, None where it is no state dict.

    A mapping is a state dict if its keys are text, at least one value is a tensor and no value is a mapping or list, except
    torch's own ``_extra_state``.
    """
    entries: dict[str, Node]
    if is_module(node):
        entries = dict(_module_entries(node, at))
    elif isinstance(node, Mapping):
        entries = dict(node)
        if not all(isinstance(key, str) for key in node) or any(_is_branch(name, value) for name, value in entries.items()):
            return None
    else:
        return None
    tensors = {name: value for name, value in entries.items() if isinstance(value, TensorRef)}
    if not tensors:
        return None
    others = {name: value for name, value in entries.items() if not isinstance(value, TensorRef) and not _is_empty_extra(name, value)}
    return WeightSet(at, tensors, others, remark)


def own_names(weights: WeightSet, *, wrappers: int = 0, like: WeightSet | None = None) -> WeightSet:
    """Return the weights under the model's own names.

    ``_orig_mod.`` (torch.compile) goes wherever it stands. ``module.`` (DataParallel, DistributedDataParallel) goes from the
    front where every name has it: ``wrappers`` times, then as long as the names are not those of ``like``.

    Raises:
        LayoutError: two names become one (E216).
    """
    names = {name: name.replace(_COMPILED, "") for name in [*weights.tensors, *weights.others]}
    most = min((_wrappers(own) for own in names.values()), default=0)
    known = frozenset(like.tensors) if like is not None else frozenset()
    for taken in range(most):
        if taken >= wrappers and known and any(own[taken * len(_WRAPPER) :] in known for own in names.values()):
            most = taken
            break
    names = {name: own[most * len(_WRAPPER) :] for name, own in names.items()}
    if len(set(names.values())) != len(names):
        twice = min(own for own, times in Counter(names.values()).items() if times > 1)
        facts = {"at": weights.at, "found": ", ".join([name for name, own in names.items() if own == twice][:_MAX_SHOWN])}
        raise LayoutError("E216", f"two tensors would both be called {twice!r}", facts=facts)
    tensors = {names[name]: ref for name, ref in weights.tensors.items()}
    return WeightSet(weights.at, tensors, {names[name]: node for name, node in weights.others.items()}, weights.remark)


def _wrappers(name: str) -> int:
    """Return how often ``module.`` stands at the front of a name; no trainer wraps more often than a few times."""
    taken = 0
    while taken < _MAX_WRAPPERS and name.startswith(_WRAPPER, taken * len(_WRAPPER)):
        taken += 1
    return taken


def same_values(one: WeightSet, other: WeightSet) -> bool:
    """Return whether every floating tensor of ``one`` has the same bytes in ``other``, as far as the container's checksums tell.

    Nothing is read: sizes, checksums and views are compared. False where the container has no checksums.
    """
    names = [name for name, ref in one.tensors.items() if DTYPES[ref.dtype].kind == "float"]
    return bool(names) and all(name in other.tensors and _same_bytes(one.tensors[name], other.tensors[name]) for name in names)


def with_tied(weights: WeightSet, like: WeightSet) -> WeightSet:
    """Return ``weights`` also under every name that is one tensor with a name of theirs in ``like``.

    A parameter with two names is averaged once, under the first of them; the other must not be left with another copy's values.
    """
    first = {_view(like.tensors[name]): name for name in reversed(list(weights.tensors)) if name in like.tensors}
    tied = {name: first.get(_view(ref)) for name, ref in like.tensors.items() if name not in weights.tensors and not isinstance(ref, Blend)}
    more = {name: weights.tensors[own] for name, own in tied.items() if own is not None}
    return replace(weights, tensors={**weights.tensors, **more}) if more else weights


def _view(ref: Source) -> object:
    return ref if isinstance(ref, Blend) else (ref.storage, ref.dtype, ref.shape, ref.strides, ref.offset, ref.shards)


def _same_bytes(one: Source, other: Source) -> bool:
    if isinstance(one, Blend) or isinstance(other, Blend):
        return False
    if (one.dtype, one.shape, one.strides, one.offset) != (other.dtype, other.shape, other.strides, other.offset):
        return False
    if one.storage == other.storage:
        return True
    checksums = [(ref.storage.crc32, ref.storage.crc32c, ref.storage.size_bytes) for ref in (one, other)]
    return checksums[0][:2] != (None, None) and checksums[0] == checksums[1]


def _module_entries(module: Node, at: str) -> Iterator[tuple[str, Node]]:
    """Yield what ``module.state_dict()`` would hold, in its order."""
    todo: list[tuple[str, int, Node]] = [("", 0, module)]
    visited = steps = 0
    while todo:
        prefix, level, node = todo.pop()
        visited += 1
        steps += sum(len(table) for kind in _TABLES if isinstance(table := _attributes(node).get(kind), Mapping)) * (1 + len(prefix) // 64)
        if visited > MAX_MODULES or level > _MAX_LEVELS or steps > _MAX_STEPS or len(prefix) > _MAX_PREFIX:
            facts = {"at": at, "found": f"{visited} submodules, {level} levels deep"}
            raise LayoutError("E217", "the pickled module contains itself, or has more submodules than a model has", facts=facts)
        attributes = _attributes(node)
        transient = attributes.get("_non_persistent_buffers_set") or ()
        for kind in ("_parameters", "_buffers"):
            table = attributes.get(kind)
            for name, value in table.items() if isinstance(table, Mapping) else ():
                if value is not None and not (kind == "_buffers" and isinstance(transient, (set, frozenset)) and name in transient):
                    yield f"{prefix}{name}", value
        children = attributes.get("_modules")
        todo += [
            (f"{prefix}{str(name)[: 2 * _MAX_PREFIX]}.", level + 1, value)
            for name, value in reversed(list(children.items()) if isinstance(children, Mapping) else [])
            if isinstance(value, ObjectRef)
        ]


def _attributes(node: Node) -> Mapping[object, Node]:
    """Return the ``__dict__`` that the pickle gave an object."""
    state = node.state if isinstance(node, ObjectRef) else None
    if isinstance(state, tuple) and state:
        state = state[0]
    return state if isinstance(state, Mapping) else {}


def _is_branch(name: str, value: Node) -> bool:
    return not isinstance(value, TensorRef) and isinstance(value, (Mapping, list)) and not name.endswith(_EXTRA_STATE)


def _is_empty_extra(name: str, value: Node) -> bool:
    return name.endswith(_EXTRA_STATE) and (value is None or (isinstance(value, (Mapping, list, tuple)) and not value))
