"""Finding NaN and infinity in bytes: without NumPy, whose import takes as long as checking half a gigabyte, unless there is more than that."""

from __future__ import annotations

import sys

from exporter.tensors.dtypes import numpy_dtype

__all__ = ["FiniteCheck", "is_finite"]

_HIGH_BYTES = {
    "float64": (8, b"\x7f\xff"),
    "float32": (4, b"\x7f\xff"),
    "complex64": (4, b"\x7f\xff"),
    "bfloat16": (2, b"\x7f\xff"),
    "float16": (2, b"\x7c\x7d\x7e\x7f\xfc\xfd\xfe\xff"),
}
"""Dtype -> bytes of a real number, and the values of its highest byte, which holds sign and exponent, where NaN and infinity are possible."""


_LIMITS = {
    "float64": (8, 0x7FF << 52),
    "float32": (4, 0xFF << 23),
    "complex64": (4, 0xFF << 23),
    "bfloat16": (2, 0xFF << 7),
    "float16": (2, 0x1F << 10),
}
"""Dtype -> bytes of a real number, and positive infinity as an integer; NaN is above it, and so it is for negative numbers without the sign."""

_IMPORT_AFTER_BYTES = 1 << 26


class FiniteCheck:
    """Checks chunk after chunk; imports NumPy once that pays."""

    def __init__(self) -> None:
        self._left = _IMPORT_AFTER_BYTES

    def __call__(self, content: memoryview, dtype: str) -> bool:
        """Return what ``is_finite`` returns."""
        self._left -= len(content)
        if self._left < 0 and "numpy" not in sys.modules:
            import numpy  # noqa: F401 - is_finite uses it from now on
        return is_finite(content, dtype)


def is_finite(content: memoryview, dtype: str, *, with_numpy: bool | None = None) -> bool:
    """Return whether no number in ``content``, whole numbers of a floating or complex dtype, is NaN or infinite.

    With NumPy, the largest of the numbers taken as integers, with and without sign, tells. Without it the highest byte of every number
    is looked at; NumPy decides where one of them could belong to NaN or infinity, or to one of the largest numbers that there are.

    Args:
        content: the bytes, little-endian.
        dtype: torch's name.
        with_numpy: None: if it was imported already.
    """
    if not content:
        return True
    if dtype in _HIGH_BYTES and not ("numpy" in sys.modules if with_numpy is None else with_numpy):
        size_bytes, suspicious = _HIGH_BYTES[dtype]
        high = bytes(content)[size_bytes - 1 :: size_bytes]
        if not any(byte in high for byte in suspicious):
            return True
    import numpy as np

    if dtype in _LIMITS:
        size_bytes, infinity = _LIMITS[dtype]
        unsigned = np.frombuffer(content, f"<u{size_bytes}")
        sign = 1 << (8 * size_bytes - 1)
        return bool(unsigned.max() < sign + infinity and unsigned.view(f"<i{size_bytes}").max() < infinity)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return bool(np.isfinite(np.frombuffer(content, numpy_dtype(dtype))).all())
