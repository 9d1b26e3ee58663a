"""Reading the bytes behind a tensor reference, in chunks, with the container's checksum verified.

The bytes that are checked are the bytes that are handed out: nothing is read twice between check and use.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from exporter.artifacts import StorageRef, TensorRef
from exporter.errors import CheckpointError
from exporter.locations import Location, RemotePath
from exporter.tensors.checksums import checksum_of
from exporter.tensors.dtypes import DTYPES, numpy_dtype
from exporter.tensors.shards import bands, narrow
from exporter.tensors.sources import ByteSource, open_regular
from exporter.tensors.views import is_contiguous, num_spanned, size_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

__all__ = ["CHUNK_BYTES", "TensorReader", "read_integer", "read_tensor"]

CHUNK_BYTES = 1 << 18
"""A multiple of every element size; its float64 copies fit a processor's cache, which bench/bake.py shows to matter."""

WHOLE_CHUNK_BYTES = 1 << 20
"""Where nothing is computed from the values, few calls matter more than the cache."""

MAX_OPEN_FILES = 64
"""Open at once; an operating system gives a process some hundreds."""


class TensorReader:
    """Reads tensors of one or more files; used in ``with``.

    Each storage's checksum is computed once, over all of its bytes, the first time that any of them is used.
    """

    def __init__(self) -> None:
        self._files: dict[Location, ByteSource] = {}
        self._verified: set[tuple[Location, int, int]] = set()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Return the reader."""
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        """Close the files."""
        self._stack.close()

    def expect(self, refs: Iterable[TensorRef]) -> None:
        """Take note that these tensors are read soon, in this order: what lies behind a URL is then read ahead."""
        ranges: dict[RemotePath, list[tuple[int, int]]] = {}
        for ref in refs:
            path, storage = ref.storage.path, ref.storage
            if isinstance(path, RemotePath) and not ref.shards:
                begin, end = 0, storage.size_bytes
                if checksum_of(storage) is None and is_contiguous(ref):
                    begin = ref.offset * DTYPES[ref.dtype].size_bytes
                    end = begin + size_bytes(ref)
                ranges.setdefault(path, []).append((storage.offset + begin, storage.offset + end))
        for path, wanted in ranges.items():
            self._file(path).expect(dict.fromkeys(wanted))

    def whole_chunks(self, storage: StorageRef, space: Callable[[], memoryview]) -> Iterator[memoryview]:
        """Yield all bytes of a storage, part by part, each at the beginning of the memory that ``space`` returns when it is read.

        The iteration must be finished, as that of ``chunks``.

        Raises:
            CheckpointError: the checksum is wrong (E109) or the file ended early (E104).
        """
        file, position, crc = self._file(storage.path), 0, 0
        checksum = checksum_of(storage)
        file.expect([(storage.offset, storage.offset + storage.size_bytes)])
        while position < storage.size_bytes:
            part = space()[: min(WHOLE_CHUNK_BYTES, storage.size_bytes - position)]
            _read_exactly(file, storage, position, part)
            if checksum is not None:
                crc = checksum[1](part, crc)
            position += len(part)
            yield part
        self._check(storage, crc)

    def chunks(self, ref: TensorRef, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[memoryview]:
        """Yield the tensor's elements in row-major order, whole elements at a time.

        A yielded view is valid until the next one is asked for. The iteration must be finished: a wrong checksum is known,
        and raised, only after the last byte.

        Raises:
            CheckpointError: the checksum is wrong (E109) or the file ended early (E104).
        """
        if ref.num_elements == 0:
            return
        if ref.shards:
            yield from self._joined(ref, chunk_bytes)
        elif is_contiguous(ref):
            begin = ref.offset * DTYPES[ref.dtype].size_bytes
            yield from self._range(ref.storage, begin, begin + size_bytes(ref), chunk_bytes)
        else:
            yield from self._gathered(ref, chunk_bytes)

    def _range(self, storage: StorageRef, begin: int, end: int, chunk_bytes: int) -> Iterator[memoryview]:
        """Yield bytes ``begin`` to ``end`` of a storage; read all of it where its checksum is still to be verified."""
        place = (storage.path, storage.offset, storage.size_bytes)
        checksum = checksum_of(storage) if place not in self._verified else None
        position, stop = (0, storage.size_bytes) if checksum is not None else (begin, end)
        buffer = memoryview(bytearray(min(chunk_bytes, stop - position)))
        self._file(storage.path).expect([(storage.offset + position, storage.offset + stop)])
        crc = 0
        while position < stop:
            part = buffer[: min(len(buffer), stop - position)]
            _read_exactly(self._file(storage.path), storage, position, part)
            if checksum is not None:
                crc = checksum[1](part, crc)
            first, last = max(begin - position, 0), min(end - position, len(part))
            if first < last:
                yield part[first:last]
            position += len(part)
        if checksum is not None:
            self._check(storage, crc)

    def _check(self, storage: StorageRef, crc: int) -> None:
        """Compare the checksum of all bytes of a storage with what its container says, if it says something."""
        checksum = checksum_of(storage)
        if checksum is None:
            return
        name, _, expected = checksum
        if crc != expected:
            facts = {
                "file": storage.path,
                "at": f"storage {storage.key!r}, byte {storage.offset}",
                "found": f"{name} {crc:08x}",
                "expected": f"{expected:08x}, as the file's own directory says",
            }
            raise CheckpointError("E109", "the checkpoint is damaged: a tensor's checksum is wrong", facts=facts)
        self._verified.add((storage.path, storage.offset, storage.size_bytes))

    def _gathered(self, ref: TensorRef, chunk_bytes: int) -> Iterator[memoryview]:
        """Yield the elements of a strided view in row-major order, by rows of its first axis."""
        import numpy as np

        item = DTYPES[ref.dtype].size_bytes
        begin = ref.offset * item
        spanned = bytearray(num_spanned(ref.shape, ref.strides) * item)
        filled = 0
        for part in self._range(ref.storage, begin, begin + len(spanned), chunk_bytes):
            spanned[filled : filled + len(part)] = part
            filled += len(part)
        flat = np.frombuffer(spanned, np.dtype((np.void, item)))
        view = np.lib.stride_tricks.as_strided(flat, ref.shape, tuple(stride * item for stride in ref.strides), writeable=False)
        rows = max(1, chunk_bytes // (size_bytes(ref) // ref.shape[0]))
        for row in range(0, ref.shape[0], rows):
            yield memoryview(np.ascontiguousarray(view[row : row + rows]).tobytes())

    def _joined(self, ref: TensorRef, chunk_bytes: int) -> Iterator[memoryview]:
        """Yield the elements of a tensor saved in parts: band by band along its first axis, the boxes of a band side by side."""
        import numpy as np

        item = DTYPES[ref.dtype].size_bytes
        for begin, end, shards in bands(ref):
            if len(shards) == 1:
                yield from self.chunks(narrow(shards[0], begin, end), chunk_bytes=chunk_bytes)
                continue
            rows = max(1, chunk_bytes // (size_bytes(ref) // ref.shape[0]))
            for first in range(begin, end, rows):
                last = min(first + rows, end)
                band = np.empty((last - first, *ref.shape[1:]), np.dtype((np.void, item)))
                for shard in shards:
                    part = narrow(shard, first, last)
                    content = b"".join(bytes(chunk) for chunk in self.chunks(part, chunk_bytes=chunk_bytes))
                    place = tuple(slice(start, start + size) for start, size in zip(shard.begin[1:], part.shape[1:], strict=True))
                    band[(slice(None), *place)] = np.frombuffer(content, band.dtype).reshape(part.shape)
                yield memoryview(band.tobytes())

    def _file(self, path: Location) -> ByteSource:
        """Return the open file; of a checkpoint in very many files the ones used last stay open."""
        file = self._files.pop(path, None)
        if file is None:
            file = self._stack.enter_context(open_regular(path))
            if len(self._files) >= MAX_OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
        self._files[path] = file
        return file


def read_tensor(ref: TensorRef, reader: TensorReader | None = None) -> NDArray[Any]:
    """Return the tensor's values as an array of its shape; bfloat16 and float8 are the dtypes of ml_dtypes.

    Raises:
        CheckpointError: the bytes are damaged (E109, E104) or the dtype has no counterpart in NumPy (E113).
    """
    import numpy as np

    try:
        dtype = numpy_dtype(ref.dtype)
    except KeyError as err:
        raise CheckpointError("E113", f"tensors of dtype {ref.dtype} cannot be read", facts={"file": ref.storage.path}) from err
    content = bytearray(size_bytes(ref))
    position = 0
    with contextlib.ExitStack() as stack:
        source = reader if reader is not None else stack.enter_context(TensorReader())
        for part in source.chunks(ref):
            content[position : position + len(part)] = part
            position += len(part)
    return np.frombuffer(content, dtype).reshape(ref.shape)


def read_integer(ref: TensorRef, reader: TensorReader | None = None) -> int | None:
    """Return the value of an integer tensor with one element, None for any other tensor; needs no NumPy."""
    dtype = DTYPES[ref.dtype]
    if dtype.kind != "int" or ref.num_elements != 1:
        return None
    with contextlib.ExitStack() as stack:
        source = reader if reader is not None else stack.enter_context(TensorReader())
        content = b"".join(bytes(part) for part in source.chunks(ref))
    return int.from_bytes(content, "little", signed=not ref.dtype.startswith("u"))


def _read_exactly(file: ByteSource, storage: StorageRef, position: int, target: memoryview) -> None:
    if file.read_into(target, storage.offset + position) < len(target):
        facts = {"file": storage.path, "at": f"storage {storage.key!r}", "expected": f"{storage.size_bytes} bytes from byte {storage.offset} on"}
        raise CheckpointError("E104", "the checkpoint ends in the middle of a tensor", facts=facts)
