"""Tensors that stand nowhere in a file: linear combinations of tensors that do, computed while they are read.

The sum is taken in float64, element by element, and rounded once, to the dtype of the output. Every input is read in chunks, with its
checksum verified, so the memory needed does not depend on the size of the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from exporter.artifacts import TensorRef
from exporter.tensors import DTYPES, TensorReader, numpy_dtype
from exporter.tensors.reading import CHUNK_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Blend", "Rows", "Source", "arrays_of", "inputs_of", "is_blendable", "rounded", "scaled"]

_WIDE_BYTES = 8

Check: TypeAlias = "Callable[[TensorRef, NDArray[Any]], None]"


@dataclass(frozen=True, slots=True)
class Blend:
    """A linear combination of tensors of one shape: the sum of ``coefficient * tensor``, divided by ``divisor``.

    Attributes:
        terms: coefficient and tensor, at least one. Integers and booleans are never blended: a mean of counters means nothing.
        dtype: floating or complex; what the result has where no other is asked for.
        divisor: kept apart from the coefficients, so that a plain mean is a sum divided once.
    """

    terms: tuple[tuple[float, TensorRef], ...]
    dtype: str
    divisor: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what a layout must not make; a message for its author, not for users."""
        refs = inputs_of(self)
        if not refs or any(ref.shape != refs[0].shape for ref in refs) or not all(is_blendable(dtype) for dtype in (self.dtype, *_dtypes(refs))):
            found = [(ref.dtype, ref.shape) for ref in refs]
            raise ValueError(f"a blend needs floating tensors of one shape: {found} -> {self.dtype}")
        if not all(map(math.isfinite, (self.divisor, *(coefficient for coefficient, _ in self.terms)))) or self.divisor == 0.0:
            raise ValueError(f"a blend needs finite coefficients and a divisor other than 0: {self.terms}, {self.divisor}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of every term."""
        return self.terms[0][1].shape

    @property
    def num_elements(self) -> int:
        """Return the number of elements of the result."""
        return self.terms[0][1].num_elements


Source: TypeAlias = "TensorRef | Blend"
"""Where the values of a tensor come from: the bytes of a file, or a computation on several."""


def inputs_of(source: Source) -> tuple[TensorRef, ...]:
    """Return the tensors of the file that ``source`` is made from."""
    return tuple(ref for _, ref in source.terms) if isinstance(source, Blend) else (source,)


def is_blendable(dtype: str) -> bool:
    """Return whether tensors of torch's ``dtype`` can be combined: floating and complex ones can."""
    return DTYPES[dtype].kind in {"float", "complex"} and bool(DTYPES[dtype].numpy)


def scaled(source: Source, divisor: float) -> Source:
    """Return ``source`` divided by ``divisor``; integers, booleans and quantized tensors as they are."""
    if isinstance(source, Blend):
        return Blend(source.terms, source.dtype, source.divisor * divisor)
    return Blend(((1.0, source),), source.dtype, divisor) if is_blendable(source.dtype) else source


def arrays_of(reader: TensorReader, source: Source, *, check: Check | None = None, chunk_bytes: int = CHUNK_BYTES) -> Iterator[NDArray[Any]]:
    """Yield the elements of ``source`` in row-major order: a tensor of the file in its dtype, a blend in float64 or complex128.

    Of a blend the last run is yielded only after the checksum of every term was verified.

    Args:
        reader: reads the bytes.
        source: what to read or compute.
        check: called with every tensor of the file and every run of its elements, before they are used.
        chunk_bytes: read at a time, of a tensor of the file.

    Raises:
        CheckpointError: the checkpoint is damaged (E104, E109).
    """
    import numpy as np

    if isinstance(source, Blend):
        yield from _blended(reader, source, check)
        return
    dtype = numpy_dtype(source.dtype)
    for part in reader.chunks(source, chunk_bytes=chunk_bytes):
        values = np.frombuffer(part, dtype)
        if check is not None:
            check(source, values)
        yield values


def _blended(reader: TensorReader, blend: Blend, check: Check | None) -> Iterator[NDArray[Any]]:
    import numpy as np

    wide = np.complex128 if any(DTYPES[ref.dtype].kind == "complex" for _, ref in blend.terms) else np.float64
    step = CHUNK_BYTES // _WIDE_BYTES
    rows = [Rows(reader, ref, check=check, chunk_bytes=step * DTYPES[ref.dtype].size_bytes) for _, ref in blend.terms]
    done = 0
    while done < blend.num_elements:
        total = np.empty(min(step, blend.num_elements - done), wide)
        with np.errstate(all="ignore"):  # the check decides about what is not finite
            for index, ((coefficient, _), row) in enumerate(zip(blend.terms, rows, strict=True)):
                row.add_to(total, coefficient, is_first=index == 0)
            if blend.divisor != 1.0:
                total /= blend.divisor
        done += len(total)
        if done == blend.num_elements:
            for row in rows:
                row.finish()
        yield total


def rounded(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return ``values`` in torch's ``dtype``, rounded once, to nearest with ties to even.

    NumPy's casts do so. Those of ml_dtypes go through float32, which rounds twice; here float64 is cut to float32 with the last bit set
    where anything was cut off, from where the second rounding is the right one.
    """
    import numpy as np

    target = numpy_dtype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        if values.dtype != np.float64 or DTYPES[dtype].numpy in {"float64", "float32", "float16"}:
            cast: NDArray[Any] = values.astype(target)
            return cast
        single = values.astype(np.float32)
        back = single.astype(np.float64)
        bits = single.view(np.uint32)
        bits -= np.abs(back) > np.abs(values)
        bits |= back != values
        return single.astype(target)


class Rows:
    """A tensor's elements, handed out in runs of any length, whatever the size of the chunks that they are read in."""

    def __init__(self, reader: TensorReader, source: Source, *, check: Check | None = None, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._arrays = arrays_of(reader, source, check=check, chunk_bytes=chunk_bytes)
        self._left: NDArray[Any] | None = None

    def take(self, most: int) -> NDArray[Any]:
        """Return the next elements, at least one and at most ``most``."""
        if self._left is None or not len(self._left):
            self._left = next(self._arrays)
        taken, self._left = self._left[:most], self._left[most:]
        return taken

    def add_to(self, total: NDArray[Any], coefficient: float, *, is_first: bool) -> None:
        """Add the next ``len(total)`` elements, multiplied in the dtype of ``total``; the first of several terms is written instead."""
        position = 0
        while position < len(total):
            part = self.take(len(total) - position)
            wide = coefficient * part.astype(total.dtype)
            if is_first:
                total[position : position + len(part)] = wide
            else:
                total[position : position + len(part)] += wide
            position += len(part)

    def finish(self) -> None:
        """Read to the end, so that the checksum is verified too."""
        for _ in self._arrays:
            pass


def _dtypes(refs: tuple[TensorRef, ...]) -> Iterator[str]:
    return (ref.dtype for ref in refs)
