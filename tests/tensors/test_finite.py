"""NaN and infinity are found in bytes, in every place and in every dtype that has them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from exporter.tensors.dtypes import DTYPES, numpy_dtype
from exporter.tensors.finite import is_finite

FLOATING = [name for name, dtype in DTYPES.items() if dtype.kind in {"float", "complex"} and dtype.numpy]


def every_pattern(name: str) -> np.ndarray:
    """Return numbers with every combination of sign, exponent and highest bits of the mantissa of a dtype of at most 32 bits."""
    bits = 8 * DTYPES[name].size_bytes
    patterns = np.arange(1 << min(bits, 16), dtype=np.uint64) << max(bits - 16, 0)
    return patterns.astype(f"<u{bits // 8}").view(numpy_dtype(name))


WAYS = pytest.mark.parametrize("with_numpy", [True, False], ids=["as integers", "by bytes"])


@WAYS
@pytest.mark.parametrize("name", [name for name in FLOATING if DTYPES[name].kind == "float"])
def test_every_number_is_judged_as_numpy_judges_it(name: str, *, with_numpy: bool) -> None:
    """One number alone is finite exactly if NumPy says so, and so are all numbers that NumPy calls finite together."""
    numbers = every_pattern(name)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(numbers)
    item = DTYPES[name].size_bytes
    content = memoryview(numbers.tobytes())
    wrong = [
        index
        for index, expected in enumerate(finite)
        if is_finite(content[index * item : (index + 1) * item], name, with_numpy=with_numpy) != expected
    ]
    assert wrong == []
    assert is_finite(memoryview(numbers[finite].tobytes()), name, with_numpy=with_numpy)


@pytest.mark.parametrize("name", [name for name in FLOATING if name != "float8_e8m0fnu"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=["nan", "inf", "-inf"])
@pytest.mark.parametrize("position", [0, 500, 1000])
@WAYS
def test_one_bad_number_among_many_is_found(name: str, value: float, position: int, *, with_numpy: bool) -> None:
    """First, last or in the middle; of a complex number either part."""
    numbers = np.linspace(0.0, 1.0, 1001).astype(numpy_dtype(name))
    assert is_finite(memoryview(numbers.tobytes()), name, with_numpy=with_numpy)
    with np.errstate(invalid="ignore"):
        numbers[position] = complex(0.0, value) if DTYPES[name].kind == "complex" else value
        expected = bool(np.isfinite(numbers).all())
    assert is_finite(memoryview(numbers.tobytes()), name, with_numpy=with_numpy) == expected


@WAYS
@pytest.mark.parametrize("name", ["float32", "float64", "bfloat16", "float16"])
def test_the_largest_number_is_finite(name: str, *, with_numpy: bool) -> None:
    """A mask is often made of it."""
    numbers = np.array([-65504.0 if name == "float16" else -3.3895e38], numpy_dtype(name))
    assert is_finite(memoryview(numbers.tobytes()), name, with_numpy=with_numpy)


def test_no_numpy_is_imported_for_ordinary_weights() -> None:
    """Its import would take longer than checking a gigabyte."""
    script = (
        "import struct, sys; from exporter.tensors.finite import is_finite; "
        "print(is_finite(memoryview(struct.pack('<4f', 1.5, -2e30, 0.0, 1e-40)), 'float32'), 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split() == ["True", "False"]
