"""What a feed must look like: every input by name, with the declared shape and dtype."""

from __future__ import annotations

import numpy as np

from exporter.artifacts import TensorSpec
from exporter.errors import SampleError
from exporter.runners.base import Feed

__all__ = ["check_feed", "numpy_dtype"]

_ML_DTYPES = ("bfloat16", "float8_e4m3fn", "float8_e5m2")


def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """Return the NumPy dtype for torch's dtype name; bfloat16 and float8 come from ml_dtypes."""
    if name in _ML_DTYPES:
        import ml_dtypes

        found: np.dtype[np.generic] = np.dtype(getattr(ml_dtypes, name))
        return found
    return np.dtype(name)


def check_feed(feed: Feed, inputs: tuple[TensorSpec, ...], *, runner: str) -> None:
    """Check names, shapes and dtypes of ``feed`` against ``inputs``.

    A string in a declared shape is a dynamic axis; the same string must stand for the same size in every input.

    Raises:
        SampleError: E611 names, E612 rank or size, E613 dtype, E614 two inputs disagree on a dynamic axis.
    """
    names = [spec.name for spec in inputs]
    if set(feed) != set(names):
        facts = {"runner": runner, "found": ", ".join(sorted(feed)) or "nothing", "expected": ", ".join(names)}
        raise SampleError(
            "E611", "the inputs fed are not the inputs of the model", facts=facts, help="name the arrays of the samples as the model's inputs"
        )
    sizes: dict[str, tuple[int, str]] = {}
    for spec in inputs:
        array = feed[spec.name]
        found = f"{array.dtype} {tuple(array.shape)}"
        facts = {"runner": runner, "input": spec.name, "found": found, "expected": f"{spec.dtype} ({', '.join(map(str, spec.shape))})"}
        fits = len(array.shape) == len(spec.shape)
        if not fits or any(isinstance(want, int) and want != size for want, size in zip(spec.shape, array.shape, strict=True)):
            raise SampleError("E612", "an input has a shape that the model does not take", facts=facts)
        if array.dtype != numpy_dtype(spec.dtype):
            help_text = f"store the samples as {spec.dtype}: array.astype({spec.dtype!r})"
            raise SampleError("E613", "an input has a dtype that the model does not take", facts=facts, help=help_text)
        for axis, size in zip(spec.shape, array.shape, strict=True):
            if isinstance(axis, str) and sizes.setdefault(axis, (size, spec.name))[0] != size:
                other_size, other = sizes[axis]
                found = f"{other}: {other_size}, {spec.name}: {size}"
                raise SampleError("E614", "two inputs disagree on the size of a dynamic axis", facts={"runner": runner, "axis": axis, "found": found})
