"""A folder of torch.distributed.checkpoint as a checkpoint: ``.metadata`` and ``*.distcp``, the shards of DTensors put together.

Each process writes a file, and each item of a file is an archive of torch.save by itself: a box of a tensor, or a value. The
tree is that of the dict which was saved; ``.metadata`` keeps its keys beside the flattened names.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from exporter.artifacts import Checkpoint, Node, ShardRef, StorageRef, TensorRef
from exporter.checkpoint.distributed_metadata import Item, MalformedMetadata, Saved, read_records
from exporter.checkpoint.distributed_names import regrouped
from exporter.checkpoint.folders import open_member
from exporter.checkpoint.pickle_budget import Budget
from exporter.checkpoint.pickle_calls import locate_calls
from exporter.checkpoint.pickle_ops import MalformedPickle, Unpickler
from exporter.checkpoint.torch_zip import MAX_PICKLE_BYTES, TorchArchive, read_window
from exporter.checkpoint.zip_directory import Window
from exporter.errors import CheckpointError
from exporter.tensors.shards import NotTiled, check_tiling
from exporter.tensors.sources import ByteSource

__all__ = ["METADATA", "read_distributed"]

METADATA = ".metadata"
_MAX_FILES = 100_000
_MAX_STEPS = 1 << 22
"""Of checking that shards tile their tensors, for the whole checkpoint: a model of 10 000 tensors on 128 processes takes half."""


def read_distributed(folder: Path) -> Checkpoint:
    """Return the checkpoint in ``folder``; the bytes of its tensors are not touched.

    Raises:
        CheckpointError: a file or an item is missing, damaged or leads elsewhere (E101 to E112, E116), or the metadata is
            malformed or contradicts the items (E117).
    """
    path = folder / METADATA
    with open_member(folder, METADATA) as file:
        content = _whole(file, path)
    budget = Budget(_size_of(folder))
    unpickler = Unpickler(content, budget=budget)
    try:
        tree = unpickler.load()
        calls = {f"{METADATA}: {place}": callee for place, callee in locate_calls(tree, unpickler.calls).items()}
        saved = read_records(tree)
    except MalformedPickle as err:
        facts = {"file": path, "at": f"byte {unpickler.position}", "found": err}
        raise CheckpointError(err.code, f"the pickle in the checkpoint {err.problem}", facts=facts) from err
    except MalformedMetadata as err:
        raise _refused(folder, METADATA, str(err)) from err
    with contextlib.ExitStack() as stack:
        names = sorted({item.file for entry in saved for _, _, item in entry.boxes})
        archives, num_bytes = _Archives(folder, saved, budget), len(content)
        for name in names:  # one file open at a time
            num_bytes += archives.read(name, stack.enter_context(open_member(folder, name)))
            stack.pop_all().close()
    for entry in saved:
        for _, _, item in entry.boxes:
            calls |= {f"{entry.name}/{place}": callee for place, callee in archives.of[item].calls.items()}
    seen = dict.fromkeys([*unpickler.globals, *(found for archive in archives.of.values() for found in archive.globals)])
    root = _tree(folder, saved, archives.of)
    if all(len(entry.path) == 1 for entry in saved):
        root = regrouped(root)
    files = (path, *(folder / name for name in names))
    return Checkpoint(folder, "torch distributed", num_bytes, root, tuple(seen), calls, {"files": str(len(files))}, files)


class _Archives:
    """Reads the items of the files: ``of`` is item -> what its archive holds."""

    def __init__(self, folder: Path, saved: Sequence[Saved], budget: Budget) -> None:
        self._folder = folder
        self._budget = budget
        self._wanted: dict[str, list[tuple[Item, str]]] = {}
        for entry in saved:
            for _, _, item in entry.boxes:
                self._wanted.setdefault(item.file, []).append((item, entry.name))
        self.of: dict[Item, TorchArchive] = {}

    def read(self, name: str, file: ByteSource) -> int:
        """Read all items of one open file; they neither overlap nor reach beyond it. Return its size in bytes."""
        size = file.size_bytes
        position = 0
        for item, owner in sorted(self._wanted[name], key=lambda pair: (pair[0].offset, pair[0].size_bytes)):
            end = item.offset + item.size_bytes
            if item.offset < position or end > size:
                found = f"{owner[:80]!r} at bytes {item.offset} to {end}"
                expected = f"items one after the other within the {size} bytes of the file"
                raise _refused(self._folder, name, found, expected=expected)
            window = Window(file, item.offset, item.size_bytes)
            if window.read(4, 0) != b"PK\x03\x04":
                facts = {"file": self._folder / name, "at": f"{owner[:80]!r}, byte {item.offset}", "found": "no archive of torch.save"}
                facts["expected"] = "what FileSystemWriter writes with serialization_format=TORCH_SAVE, its default"
                raise CheckpointError("E105", "the checkpoint is in a container that is not read", facts=facts)
            self.of[item] = read_window(window, self._folder / name, budget=self._budget)
            position = end
        return size


def _tree(folder: Path, saved: Sequence[Saved], archives: Mapping[Item, TorchArchive]) -> dict[str, Node]:
    """Return the dict that was saved."""
    root: dict[str | int, object] = {}
    steps_left = _MAX_STEPS
    for entry in saved:
        if entry.shape is None:
            value = archives[entry.boxes[0][2]].tree
        else:
            value, steps = _joined(folder, entry, archives, steps_left)
            steps_left -= steps
        branch = root
        for step in entry.path[:-1]:
            below = branch.setdefault(step, _Branch())
            if not isinstance(below, _Branch):
                raise _refused(folder, METADATA, f"{entry.name[:80]!r} below a value")
            branch = below
        if entry.path[-1] in branch:
            raise _refused(folder, METADATA, f"two values at the place of {entry.name[:80]!r}")
        branch[entry.path[-1]] = value
    return {str(key): value for key, value in _branches(folder, root).items()}


class _Branch(dict[str | int, object]):
    """A dict or list of the tree that was saved, as far as it was put together."""


def _branches(folder: Path, branch: dict[str | int, object]) -> dict[str | int, Node]:
    return {key: _plain(folder, value) if isinstance(value, _Branch) else value for key, value in branch.items()}  # type: ignore[misc]


def _plain(folder: Path, branch: dict[str | int, object]) -> Node:
    """Return the branch as a dict, or as a list where its keys are positions; the depth was bounded with the paths."""
    values = _branches(folder, branch)
    if not any(isinstance(key, int) for key in values):
        return values
    if set(values) != set(range(len(values))):
        raise _refused(folder, METADATA, f"a list with the positions {str(list(values))[:80]}")
    return [values[position] for position in range(len(values))]


def _joined(folder: Path, entry: Saved, archives: Mapping[Item, TorchArchive], steps_left: int) -> tuple[Node, int]:
    """Return the tensor of an entry, put together from its parts, and the steps that checking them took."""
    shape = entry.shape or ()
    shards = []
    for begin, sizes, item in entry.boxes:
        part = archives[item].tree
        if len(entry.boxes) == 1 and not isinstance(part, TensorRef):
            return part, 0  # sparse, quantized, a subclass: whoever asks for it is told
        if not isinstance(part, TensorRef) or (part.dtype, part.shape) != (entry.dtype, sizes):
            found = f"{part.dtype} {part.shape}" if isinstance(part, TensorRef) else type(part).__name__
            raise _refused(folder, item.file, f"{entry.name[:80]!r}: {found}", expected=f"{entry.dtype} {sizes}, as in {METADATA}")
        shards.append(ShardRef(begin, part))
    boxes = [(begin, tuple(b + s for b, s in zip(begin, sizes, strict=True))) for begin, sizes, _ in entry.boxes]
    try:
        steps = check_tiling(shape, boxes, max_steps=steps_left)
    except NotTiled as err:
        if err.limit:
            facts = {"file": folder / METADATA, "at": entry.name, "found": err}
            raise CheckpointError("E111", "a part of the checkpoint is larger than any trainer writes it", facts=facts) from err
        raise _refused(folder, METADATA, f"{entry.name[:80]!r}: {err}", expected=f"parts that tile {shape} exactly") from err
    whole = next((shard.tensor for shard in shards if shard.tensor.shape == shape), None)
    if whole is not None:
        return whole, steps
    storage = StorageRef(entry.name, folder / METADATA, 0, sum(shard.tensor.storage.size_bytes for shard in shards))
    return TensorRef(entry.dtype, shape, _row_major(shape), 0, storage, shards=tuple(shards)), steps


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return tuple(strides)


def _size_of(folder: Path) -> int:
    """Return the bytes of all files in the folder, by which the work is bounded that its pickles may take."""
    with os.scandir(folder) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in itertools.islice(entries, _MAX_FILES))


def _whole(file: ByteSource, path: Path) -> bytes:
    size = file.size_bytes
    if size > MAX_PICKLE_BYTES:
        facts = {"file": path, "found": f"{size} bytes", "expected": f"at most {MAX_PICKLE_BYTES}"}
        raise CheckpointError("E111", "a part of the checkpoint is larger than any trainer writes it", facts=facts)
    return file.read(size, 0)


def _refused(folder: Path, name: str, found: str, *, expected: str = "what torch.distributed.checkpoint writes") -> CheckpointError:
    facts = {"file": folder / name, "found": found, "expected": expected}
    return CheckpointError("E117", "the parts of the distributed checkpoint do not fit together", facts=facts)
