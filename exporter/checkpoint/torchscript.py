"""A TorchScript archive (``torch.jit.save``): its parameters and buffers as a flat state dict, its code not run.

    data.pkl: the modules as objects with attributes · data/: their storages
    code/: the program as text, compressed · constants.pkl, constants/: tensors that the program uses

Which attribute of a module is a parameter or a buffer stands in the text of its class (``__parameters__ = ["weight", ]``).
Those two lines of each class are all that is looked at; nothing of the text is compiled.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from exporter.artifacts import Checkpoint, Node, ObjectRef, TensorRef, walk
from exporter.checkpoint.pickle_budget import Budget
from exporter.checkpoint.pickle_calls import locate_calls
from exporter.checkpoint.pickle_meanings import MalformedPickle, Meaning
from exporter.checkpoint.pickle_ops import Unpickler
from exporter.checkpoint.torch_zip import MAX_PICKLE_BYTES, StorageFinder, content_of, read_labels
from exporter.checkpoint.zip_directory import Member, Window
from exporter.errors import CheckpointError
from exporter.locations import Location

__all__ = ["read_torchscript"]

MAX_CODE_BYTES = 1 << 26
_MAX_MODULES = 100_000
_MAX_LEVELS = 100
_MAX_STEPS, _MAX_NAME = 1 << 21, 1000
_LINES = re.compile(r"^class (\w+)\((\w+)\):$|^  __(parameters|buffers)__ = \[(.*)\]$", re.MULTILINE)
_NAMES = re.compile(r'"((?:[^"\\]|\\.)*)"')
_PACKED = "__torch__.torch.classes."


@dataclass(frozen=True, slots=True)
class _ModuleClass:
    """The names that a class of modules declares."""

    parameters: list[str]
    buffers: list[str]


def read_torchscript(window: Window, members: Mapping[str, Member], root: str, path: Location) -> Checkpoint:
    """Return the checkpoint in a TorchScript archive whose members stand below ``root``.

    Raises:
        CheckpointError: E108 to E113, or E134: it holds no modules, or their classes do not fit.
    """
    metadata = read_labels(window, members, root, path)
    budget = Budget(window.size_bytes)
    modules, found = _unpickled(window, members, root, "data", path, budget)
    constants, more = _unpickled(window, members, root, "constants", path, budget)
    classes = _classes(window, members, root, path)
    if not isinstance(modules, ObjectRef) or str(modules.callee) not in classes:
        raise _refused(path, f"{root}/data.pkl", f"no module, but {str(getattr(modules, 'callee', type(modules).__name__))[:80]}")
    state: dict[str, Node] = {}
    for name, value in _entries(modules, classes, path):
        if name in state:
            raise _refused(path, f"{root}/data.pkl", f"two tensors with the name {name[:80]!r}")
        state[name] = value
    number = sum(isinstance(node, TensorRef) for _, node in walk(constants))
    metadata |= {"code": "not run", "constants": f"{number} tensors of the program, which are no parameters and no buffers"}
    named = tuple(dict.fromkeys((*found.globals, *more.globals)))
    calls = locate_calls(modules, found.calls) | {f"constants/{at}": call for at, call in locate_calls(constants, more.calls).items()}
    return Checkpoint(path, "TorchScript, its code not run", window.size_bytes, state, named, calls, metadata)


def _unpickled(window: Window, members: Mapping[str, Member], root: str, folder: str, path: Location, budget: Budget) -> tuple[Node, Unpickler]:
    name = f"{root}/{folder}.pkl"
    if name not in members:
        raise _refused(path, name, "no such member")
    content = content_of(window.source, members[name], path, limit=MAX_PICKLE_BYTES)
    unpickler = Unpickler(content, persistent=StorageFinder(members, f"{root}/{folder}", path), meanings=_MEANINGS, budget=budget)
    try:
        tree = unpickler.load()
        locate_calls(tree, {})  # for its depth
    except MalformedPickle as err:
        facts = {"file": path, "at": f"{name}, byte {unpickler.position}", "found": err}
        raise CheckpointError(err.code, f"the pickle in the checkpoint {err.problem}", facts=facts) from err
    return tree, unpickler


def _entries(top: ObjectRef, classes: Mapping[str, _ModuleClass], path: Location) -> Iterator[tuple[str, Node]]:
    """Yield what ``state_dict()`` of the module would hold, in its order; what is no plain tensor is yielded as its record."""
    todo: list[tuple[str, int, ObjectRef]] = [("", 0, top)]
    visited = steps = 0
    while todo:
        prefix, level, module = todo.pop()
        visited += 1
        if visited > _MAX_MODULES or level > _MAX_LEVELS or steps > _MAX_STEPS:
            facts = {"file": path, "found": f"{visited} modules, {level} levels deep"}
            raise CheckpointError("E111", "the program of the checkpoint has more modules than a model has", facts=facts)
        state = module.state
        if not isinstance(state, Mapping):  # a module with a __setstate__ of its own, which is code
            yield prefix.rstrip(".") or "module", module
            continue
        declared = classes[str(module.callee)]
        steps += (len(declared.parameters) + len(declared.buffers) + len(state)) * (1 + len(prefix) // 64)
        for names, is_parameter in ((declared.parameters, True), (declared.buffers, False)):
            for name in names:
                value = state.get(name)
                if isinstance(value, TensorRef):
                    yield f"{prefix}{name}", replace(value, is_parameter=is_parameter)
                elif value is not None:
                    yield f"{prefix}{name}", value
        children: list[tuple[str, int, ObjectRef]] = []
        for name, value in state.items():
            if isinstance(value, ObjectRef) and str(value.callee) in classes:
                children.append((f"{prefix}{name}.", level + 1, value))
            elif isinstance(value, ObjectRef) and str(value.callee).startswith(_PACKED):  # weights packed by an operator's own code
                yield f"{prefix}{name}", value
        todo += reversed(children)


def _classes(window: Window, members: Mapping[str, Member], root: str, path: Location) -> dict[str, _ModuleClass]:
    """Return qualified name -> declared names, of every class of modules in the program's text."""
    classes: dict[str, _ModuleClass] = {}
    left = MAX_CODE_BYTES
    for name, member in members.items():
        if not name.startswith(f"{root}/code/") or not name.endswith(".py"):
            continue
        text = _text(window, member, path, limit=left)
        left -= len(text)
        qualifier = name[len(f"{root}/code/") : -len(".py")].replace("/", ".")
        declared: _ModuleClass | None = None
        for line in _LINES.finditer(text):
            label, base, kind, names = line.groups()
            if label is not None:
                declared = _ModuleClass([], []) if base == "Module" else None
                if declared is not None and classes.setdefault(f"{qualifier}.{label}", declared) is not declared:
                    raise _refused(path, name, f"the class {label} twice")
            elif declared is not None:
                listed = declared.parameters if kind == "parameters" else declared.buffers
                listed[:] = dict.fromkeys([*listed, *(part for part in _NAMES.findall(names) if len(part) <= _MAX_NAME)])
    return classes


def _text(window: Window, member: Member, path: Location, *, limit: int) -> str:
    """Return the text of a member, unpacked to no more than ``limit`` bytes."""
    size = member.size_bytes if member.inflated_bytes is None else member.inflated_bytes
    if max(size, member.size_bytes) > limit:
        facts = {"file": path, "at": member.name, "found": f"{size} bytes of text", "expected": f"at most {limit}"}
        raise CheckpointError("E111", "the program of the checkpoint is larger than any that is written", facts=facts)
    if member.inflated_bytes is None:
        content = content_of(window.source, member, path, limit=limit)
    else:
        packed = window.source.read(member.size_bytes, member.offset)
        unpacking = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = unpacking.decompress(packed, size + 1)
        except zlib.error as err:
            raise _refused(path, member.name, f"text that cannot be unpacked: {err}") from err
        if len(content) != size or not unpacking.eof or unpacking.unused_data or zlib.crc32(content) != member.crc32:
            facts = {"file": path, "at": member.name, "found": f"CRC-32 {zlib.crc32(content):08x}", "expected": f"{member.crc32:08x}"}
            raise CheckpointError("E109", "the checkpoint is damaged: a checksum is wrong", facts=facts)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as err:
        raise _refused(path, member.name, "a program that is no text") from err


def _refused(path: Location, at: str, found: str) -> CheckpointError:
    facts = {"file": path, "at": at, "found": found, "expected": "an archive as torch.jit.save writes it"}
    return CheckpointError("E134", "the program in the checkpoint breaks its format", facts=facts)


def _list(unpickler: Unpickler, args: tuple[Node, ...]) -> Node:
    """``build_intlist([...])`` and its like: lists whose type the loader has to know."""
    (items,) = args
    if not isinstance(items, list):
        raise MalformedPickle("a list made of something else than a list")
    unpickler.spend(len(items))
    return items


def _tagged(_unpickler: Unpickler, args: tuple[Node, ...]) -> Node:
    """``restore_type_tag(value, type)``."""
    value, tag = args
    if not isinstance(tag, str):
        raise MalformedPickle("a type that is no text")
    return value


_MEANINGS: dict[str, Meaning] = {
    **{f"torch.jit._pickle.build_{kind}list": _list for kind in ("int", "tensor", "double", "bool")},
    "torch.jit._pickle.restore_type_tag": _tagged,
}
