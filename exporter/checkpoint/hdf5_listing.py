"""Lists an HDF5 file on standard output, as JSON; run by ``hdf5_file`` as a process of its own, with limits.

The HDF5 library is large and was not written for hostile files, so it never opens one in the process of the user. It is given the
open file as standard input, and of it the window ``argv[1]`` (start) and ``argv[2]`` (size). Only hard links are followed.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
from typing import Any

__all__ = ["main"]

_MEMORY_BYTES = 1 << 31
_DATA_BYTES = 400 << 20
_PROCESSOR_S, _BYTES_PER_S = 4, 1_000_000_000
_MAX_TEXT = 1 << 24
_MAX_OBJECTS = 200_000


class _Window(io.RawIOBase):
    """A run of bytes of standard input as a file of its own."""

    def __init__(self, start: int, size: int) -> None:
        self._start, self._size, self._position = start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, target: Any) -> int:  # noqa: ANN401 - any buffer
        count = max(0, min(len(target), self._size - self._position))
        content = os.pread(0, count, self._start + self._position)
        target[: len(content)] = content
        self._position += len(content)
        return len(content)


def main() -> None:
    """Write ``{"tensors": {path: [dtype, shape, offset, bytes]}, "attributes": {path: {name: value}}}``."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_DATA, (_DATA_BYTES, _DATA_BYTES))
    seconds = _PROCESSOR_S + int(sys.argv[2]) // _BYTES_PER_S
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    import h5py

    tensors: dict[str, list[Any]] = {}
    attributes: dict[str, dict[str, Any]] = {}
    with h5py.File(_Window(int(sys.argv[1]), int(sys.argv[2])), "r") as file:
        todo: list[tuple[str, Any]] = [("", file)]
        seen = written = 0
        while todo:
            path, group = todo.pop()
            attributes[path] = _attributes(group)
            written += len(path) + sum(map(_length, attributes[path].items()))
            for name in group:
                seen += 1
                written += 2 * len(path) + 2 * len(name)
                if seen > _MAX_OBJECTS or written > _MAX_TEXT or path.count("/") > 100:
                    raise ValueError("more objects, or deeper groups, than a model has")
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ValueError(f"the link {path}/{name}, which leads elsewhere")  # noqa: TRY004 - what the file holds
                below = group[name]
                here = f"{path}/{name}" if path else name
                if isinstance(below, h5py.Group):
                    todo.append((here, below))
                elif isinstance(below, h5py.Dataset):
                    tensors[here] = _dataset(here, below)
                    attributes[here] = _attributes(below)
                    written += sum(map(_length, attributes[here].items()))
                else:
                    raise ValueError(f"{here}, which is neither a group nor a data set")  # noqa: TRY004 - what the file holds
    json.dump({"tensors": tensors, "attributes": attributes}, sys.stdout)


def _dataset(path: str, dataset: Any) -> list[Any]:  # noqa: ANN401 - an h5py.Dataset
    if dataset.chunks is not None or dataset.external or dataset.is_virtual or dataset.shape is None:
        raise ValueError(f"the data set {path}, which is not one run of bytes in the file")
    offset = dataset.id.get_offset()
    if offset is None and dataset.size:
        raise ValueError(f"the data set {path}, which is not one run of bytes in the file")
    return [dataset.dtype.str, list(dataset.shape), offset or 0, int(dataset.size) * dataset.dtype.itemsize]


def _attributes(node: Any) -> dict[str, Any]:  # noqa: ANN401 - an h5py.Group or Dataset
    return {name: _plain(node.attrs[name]) for name in node.attrs}


def _length(item: tuple[str, Any]) -> int:
    name, value = item
    return len(name) + (sum(map(len, value)) if isinstance(value, list) else len(value) if isinstance(value, str) else 8)


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever an attribute holds
    """Return text, a number, or a list of text; None for anything else."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (str, bool, int, float)):
        return value
    if getattr(value, "shape", None) == ():
        return _plain(value.item())
    if getattr(value, "ndim", 0) == 1:
        return [_plain(item) for item in value.tolist() if isinstance(item, (str, bytes))]
    return None


if __name__ == "__main__":
    main()
