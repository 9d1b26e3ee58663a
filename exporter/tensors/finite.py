"""Finding NaN and infinity in bytes, nearly always without NumPy, whose import takes as long as checking a gigabyte."""

from __future__ import annotations

from exporter.tensors.dtypes import numpy_dtype

__all__ = ["is_finite"]

_HIGH_BYTES = {
    "float64": (8, b"\x7f\xff"),
    "float32": (4, b"\x7f\xff"),
    "complex64": (4, b"\x7f\xff"),
    "bfloat16": (2, b"\x7f\xff"),
    "float16": (2, b"\x7c\x7d\x7e\x7f\xfc\xfd\xfe\xff"),
}
"""Dtype -> bytes of a real number, and the values of its highest byte, which holds sign and exponent, where NaN and infinity are possible."""


def is_finite(content: memoryview, dtype: str) -> bool:
    """Return whether no number in ``content``, whole numbers of a floating or complex dtype, is NaN or infinite.

    The highest byte of every number is looked at; NumPy decides where one of them could belong to NaN or infinity, or to one of the
    largest numbers that there are.
    """
    if dtype in _HIGH_BYTES:
        size_bytes, suspicious = _HIGH_BYTES[dtype]
        high = bytes(content)[size_bytes - 1 :: size_bytes]
        if not any(byte in high for byte in suspicious):
            return True
    import numpy as np

    with np.errstate(invalid="ignore"):  # a signalling NaN
        return bool(np.isfinite(np.frombuffer(content, numpy_dtype(dtype))).all())
