"""Moving one tensor from the checkpoint to the output: verified, checked for NaN and infinity, cast where asked, in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifacts import TensorRef
from exporter.errors import LayoutError
from exporter.tensors import DTYPES, TensorReader, is_contiguous, numpy_dtype, size_bytes
from exporter.tensors.checksums import crc32
from exporter.weights.drift import DriftSums
from exporter.weights.plan import Planned
from exporter.weights.writing_behind import WriterBehind

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["stream_tensor"]

_CAN_BE_NONFINITE = frozenset({"float", "complex"})
_EXPONENTS = {"float16": 0x7C00, "bfloat16": 0x7F80}
"""All ones for NaN and infinity. NumPy takes twenty times as long to find them in half precision."""


def stream_tensor(
    planned: Planned, reader: TensorReader, target: WriterBehind, *, path: Path, allow_nonfinite: bool, advance: Callable[[int], None]
) -> tuple[int, DriftSums | None]:
    """Write one tensor's bytes to ``target`` in row-major order; return their CRC-32, and the drift where there is a raw twin.

    The bytes written are those whose checksum is computed: a chunk is read once. Nothing is copied in memory where a tensor is
    a whole storage and keeps its dtype, as nearly all are.

    Raises:
        CheckpointError: the checkpoint is damaged (E104, E109).
        LayoutError: NaN or infinity (E212), or a value that the target dtype cannot hold (E213).
    """
    source = planned.source
    if planned.twin is None and planned.dtype == source.dtype and is_contiguous(source) and size_bytes(source) == source.storage.size_bytes:
        return _stream_whole(planned, reader, target, path=path, allow_nonfinite=allow_nonfinite, advance=advance), None
    crc = 0
    if DTYPES[source.dtype].kind not in _CAN_BE_NONFINITE:
        for part in reader.chunks(source):
            crc = crc32(part, crc)
            target.write(part)
            advance(len(part))
        return crc, None
    sums = DriftSums() if planned.twin is not None else None
    twin = _Rows(reader, planned.twin) if planned.twin is not None else None
    for values in _arrays(reader, source):
        _check_finite(planned, values, path, allow_nonfinite=allow_nonfinite)
        if sums is not None and twin is not None:
            _add(sums, values, twin)
        written = values if planned.dtype == source.dtype else _cast(planned, values, path, allow_nonfinite=allow_nonfinite)
        content = written.view("u1").data  # bytes: bfloat16 has no buffer of its own
        crc = crc32(content, crc)
        target.write(content)
        advance(written.nbytes)
    if twin is not None:
        twin.finish()
    return crc, sums


def _stream_whole(
    planned: Planned, reader: TensorReader, target: WriterBehind, *, path: Path, allow_nonfinite: bool, advance: Callable[[int], None]
) -> int:
    import numpy as np

    source, crc = planned.source, 0
    checked = DTYPES[source.dtype].kind in _CAN_BE_NONFINITE and not allow_nonfinite
    for part, buffer in reader.whole_chunks(source.storage, target.take):
        if checked:
            _check_finite(planned, np.frombuffer(part, numpy_dtype(source.dtype)), path, allow_nonfinite=False)
        if source.storage.crc32 is None:
            crc = crc32(part, crc)
        target.give(part, buffer)
        advance(len(part))
    return crc if source.storage.crc32 is None else source.storage.crc32


def _arrays(reader: TensorReader, ref: TensorRef) -> Iterator[NDArray[Any]]:
    import numpy as np

    dtype = numpy_dtype(ref.dtype)
    for part in reader.chunks(ref):
        yield np.frombuffer(part, dtype)


class _Rows:
    """The raw twin, handed out in runs as long as the average's, whatever the size of its own chunks."""

    def __init__(self, reader: TensorReader, ref: TensorRef) -> None:
        self._arrays = _arrays(reader, ref)
        self._left: NDArray[Any] | None = None

    def take(self, most: int) -> NDArray[Any]:
        """Return the next elements, at least one and at most ``most``."""
        if self._left is None or not len(self._left):
            self._left = next(self._arrays)
        taken, self._left = self._left[:most], self._left[most:]
        return taken

    def finish(self) -> None:
        """Read to the end, so that the twin's checksum is verified too."""
        for _ in self._arrays:
            pass


def _add(sums: DriftSums, values: NDArray[Any], twin: _Rows) -> None:
    import numpy as np

    position = 0
    with np.errstate(all="ignore"):  # non-finite values were allowed, or stand in the raw weights, which are not exported
        while position < len(values):
            raw = twin.take(len(values) - position)
            sums.add(values[position : position + len(raw)], raw)
            position += len(raw)


def _check_finite(planned: Planned, values: NDArray[Any], path: Path, *, allow_nonfinite: bool) -> None:
    import numpy as np

    mask = _EXPONENTS.get(planned.source.dtype)
    if allow_nonfinite or (np.isfinite(values).all() if mask is None else len(values) == 0 or (values.view("u2") & mask).max() != mask):
        return
    found = "NaN" if np.isnan(values).any() else "infinity"
    facts = {"file": path, "at": planned.name, "found": found, "written": "nothing"}
    help_text = "training diverged, or a half-precision average overflowed; to export it all the same: --allow-nonfinite"
    raise LayoutError("E212", f"the weights hold {found}: {planned.name}", facts=facts, help=help_text)


def _cast(planned: Planned, values: NDArray[Any], path: Path, *, allow_nonfinite: bool) -> NDArray[Any]:
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        result: NDArray[Any] = values.astype(numpy_dtype(planned.dtype))
    if not allow_nonfinite and not np.isfinite(result).all():
        largest = float(np.abs(values.astype(np.float64)).max())
        found = f"|value| up to {largest:.4g} in {planned.source.dtype}"
        facts = {"file": path, "at": planned.name, "found": found, "expected": f"what {planned.dtype} can hold"}
        raise LayoutError("E213", f"a value of {planned.name} does not fit into {planned.dtype}", facts=facts, help="--dtype keep, or bfloat16")
    return result
