"""Moving one tensor from the checkpoint to the output: verified, checked for NaN and infinity, cast where asked, in chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from exporter.errors import LayoutError
from exporter.locations import Location
from exporter.tensors import DTYPES, TensorReader, is_contiguous, numpy_dtype, size_bytes
from exporter.tensors.checksums import crc32
from exporter.weights.blend import Blend, Rows, arrays_of, rounded
from exporter.weights.drift import DriftSums
from exporter.weights.plan import Planned
from exporter.weights.writing_behind import WriterBehind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from exporter.artifacts import TensorRef

__all__ = ["stream_tensor"]

_CAN_BE_NONFINITE = frozenset({"float", "complex"})
_EXPONENTS = {"float16": 0x7C00, "bfloat16": 0x7F80}
"""All ones for NaN and infinity. NumPy takes twenty times as long to find them in half precision."""


def stream_tensor(
    planned: Planned, reader: TensorReader, target: WriterBehind, *, path: Location, allow_nonfinite: bool, advance: Callable[[int], None]
) -> tuple[int, DriftSums | None]:
    """Write one tensor's bytes to ``target`` in row-major order; return their CRC-32, and the drift where there is a raw twin.

    The bytes written are those whose checksum is computed: a chunk is read once. Nothing is copied in memory where a tensor is
    a whole storage and keeps its dtype, as nearly all are.

    Raises:
        CheckpointError: the checkpoint is damaged (E104, E109).
        LayoutError: NaN or infinity (E212), or a value that the target dtype cannot hold (E213).
    """
    source = planned.source
    if isinstance(source, Blend):
        return _stream_values(planned, reader, target, path=path, allow_nonfinite=allow_nonfinite, advance=advance)
    if planned.twin is None and planned.dtype == source.dtype and is_contiguous(source) and size_bytes(source) == source.storage.size_bytes:
        return _stream_whole(planned, source, reader, target, path=path, allow_nonfinite=allow_nonfinite, advance=advance), None
    crc = 0
    if DTYPES[source.dtype].kind not in _CAN_BE_NONFINITE:
        for part in reader.chunks(source):
            crc = crc32(part, crc)
            target.write(part)
            advance(len(part))
        return crc, None
    return _stream_values(planned, reader, target, path=path, allow_nonfinite=allow_nonfinite, advance=advance)


def _stream_whole(
    planned: Planned,
    source: TensorRef,
    reader: TensorReader,
    target: WriterBehind,
    *,
    path: Location,
    allow_nonfinite: bool,
    advance: Callable[[int], None],
) -> int:
    target.raise_objection()  # to a tensor before, whose checksum is known to be right
    crc = 0

    def check(part: memoryview) -> None:
        if not target.is_finite(part, source.dtype):
            import numpy as np

            raise _nonfinite(planned.name, np.frombuffer(part, numpy_dtype(source.dtype)), path)

    checked = check if DTYPES[source.dtype].kind in _CAN_BE_NONFINITE and not allow_nonfinite else None
    for part in reader.whole_chunks(source.storage, target.space):
        if source.storage.crc32 is None:
            crc = crc32(part, crc)
        target.advance(len(part), checked)
        advance(len(part))
    return crc if source.storage.crc32 is None else source.storage.crc32


def _stream_values(
    planned: Planned, reader: TensorReader, target: WriterBehind, *, path: Location, allow_nonfinite: bool, advance: Callable[[int], None]
) -> tuple[int, DriftSums | None]:
    """Write values that are looked at, cast or computed on their way."""
    source, crc = planned.source, 0
    sums = DriftSums() if planned.twin is not None else None
    twin = Rows(reader, planned.twin) if planned.twin is not None else None

    def check(ref: TensorRef, part: NDArray[Any]) -> None:
        _check_finite(planned.name, ref.dtype, part, ref.storage.path if isinstance(source, Blend) else path, allow_nonfinite=allow_nonfinite)

    for values in arrays_of(reader, source, check=check):
        if sums is not None and twin is not None:
            _add(sums, values, twin)
        is_kept = planned.dtype == source.dtype and not isinstance(source, Blend)
        written = values if is_kept else _cast(planned, values, path, allow_nonfinite=allow_nonfinite)
        content = written.view("u1").data  # bytes: bfloat16 has no buffer of its own
        crc = crc32(content, crc)
        target.write(content)
        advance(written.nbytes)
    if twin is not None:
        twin.finish()
    return crc, sums


def _add(sums: DriftSums, values: NDArray[Any], twin: Rows) -> None:
    import numpy as np

    position = 0
    with np.errstate(all="ignore"):  # non-finite values were allowed, or stand in the raw weights, which are not exported
        while position < len(values):
            raw = twin.take(len(values) - position)
            sums.add(values[position : position + len(raw)], raw)
            position += len(raw)


def _check_finite(name: str, dtype: str, values: NDArray[Any], path: Location, *, allow_nonfinite: bool) -> None:
    import numpy as np

    mask = _EXPONENTS.get(dtype)
    if allow_nonfinite or (np.isfinite(values).all() if mask is None else len(values) == 0 or (values.view("u2") & mask).max() != mask):
        return
    raise _nonfinite(name, values, path)


def _nonfinite(name: str, values: NDArray[Any], path: Location) -> LayoutError:
    import numpy as np

    with np.errstate(invalid="ignore"):  # a signalling NaN
        found = "NaN" if np.isnan(values).any() else "infinity"
    facts = {"file": path, "at": name, "found": found, "written": "nothing"}
    help_text = "training diverged, or a half-precision average overflowed; to export it all the same: --allow-nonfinite"
    return LayoutError("E212", f"the weights hold {found}: {name}", facts=facts, help=help_text)


def _cast(planned: Planned, values: NDArray[Any], path: Location, *, allow_nonfinite: bool) -> NDArray[Any]:
    import numpy as np

    result = rounded(values, planned.dtype)
    if not allow_nonfinite and not np.isfinite(result).all():
        largest = float(np.abs(values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)).max())
        found = f"|value| up to {largest:.4g} in {planned.source.dtype}"
        facts = {"file": path, "at": planned.name, "found": found, "expected": f"what {planned.dtype} can hold"}
        raise LayoutError("E213", f"a value of {planned.name} does not fit into {planned.dtype}", facts=facts, help="--dtype keep, or bfloat16")
    return result
