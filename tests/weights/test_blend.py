"""Tensors computed from several: rounded once, checked like any other, never a mean of counters."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from exporter.artifacts import TensorRef
from exporter.checkpoint import open_checkpoint
from exporter.errors import CheckpointError, LayoutError
from exporter.tensors import TensorReader, numpy_dtype, size_bytes
from exporter.weights.blend import Blend, arrays_of, inputs_of, rounded, scaled
from exporter.weights.plan import Planned
from exporter.weights.streaming import stream_tensor
from exporter.weights.writing_behind import WriterBehind


def refs(tmp_path: Path, **tensors: torch.Tensor) -> dict[str, TensorRef]:
    """Save tensors and return where their bytes are."""
    torch.save(tensors, tmp_path / "terms.pt")
    root = open_checkpoint(tmp_path / "terms.pt").root
    assert isinstance(root, dict)
    return root


def written(blend: Blend, tmp_path: Path, *, dtype: str = "", allow_nonfinite: bool = False) -> NDArray[np.generic]:
    """Return what is written of a blend, as the output holds it."""
    planned = Planned("name", blend, dtype or blend.dtype, is_averaged=True)
    with (tmp_path / "out").open("wb") as file, TensorReader() as reader, WriterBehind(file.fileno()) as target:
        stream_tensor(planned, reader, target, path=tmp_path, allow_nonfinite=allow_nonfinite, advance=lambda _: None)
    return np.frombuffer((tmp_path / "out").read_bytes(), numpy_dtype(planned.dtype)).reshape(blend.shape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_equals_the_sum_in_float64_rounded_once(tmp_path: Path, dtype: torch.dtype) -> None:
    """Over several chunks, terms of other dtypes and a strided view, every element is the float64 result in the dtype asked for."""
    random = torch.Generator().manual_seed(3)
    terms = [torch.randn(311, 401, generator=random).to(kind) for kind in (dtype, torch.float32, torch.float64)]
    terms.append(torch.randn(401, 311, generator=random).t())
    found = refs(tmp_path, **{f"t{index}": term for index, term in enumerate(terms)})
    coefficients = (0.3, -1.25, 0.5, 2.0)
    blend = Blend(tuple(zip(coefficients, found.values(), strict=True)), str(dtype).removeprefix("torch."), 3.0)
    wanted = coefficients[0] * terms[0].double()
    for coefficient, term in zip(coefficients[1:], terms[1:], strict=True):
        wanted = wanted + coefficient * term.double()
    wanted = wanted / 3.0
    got = written(blend, tmp_path)
    exact = wanted.numpy()
    if dtype is torch.bfloat16:
        assert np.all(np.abs(got.astype(np.float64) - exact) <= np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64) * 2**15)
    else:
        np.testing.assert_array_equal(got, exact.astype(got.dtype))  # NumPy rounds once; torch goes through float32 to float16
    assert size_bytes(blend) == got.nbytes
    assert len(inputs_of(blend)) == 4


def test_half_precision_is_rounded_once() -> None:
    """A value just above the middle of two bfloat16 goes up, although its float32 is the middle itself, which goes to even."""
    above, below = 1 + 2**-8 + 2**-40, 1 + 3 * 2**-8 - 2**-40
    got = rounded(np.array([above, below, -above, 1 + 2**-8, 1e60, np.inf, np.nan, 0.0]), "bfloat16").astype(np.float64)
    np.testing.assert_array_equal(got, [1 + 2**-7, 1 + 2**-7, -1 - 2**-7, 1.0, np.inf, np.inf, np.nan, 0.0])
    assert np.float64(above).astype(np.float32).astype(ml_dtypes.bfloat16) == 1.0, "rounding twice gives another number"


def test_every_term_is_verified_and_checked(tmp_path: Path) -> None:
    """A damaged term is refused by its checksum, NaN in any term by name, and a result that the dtype cannot hold is refused."""
    found = refs(tmp_path, a=torch.ones(70000), b=torch.ones(70000), c=torch.full((70000,), 6e4), d=torch.full((70000,), torch.nan))
    assert np.all(written(Blend(((1.0, found["a"]), (1.0, found["b"])), "float32"), tmp_path) == 2.0)
    with pytest.raises(LayoutError, match=r"E212.*NaN"):
        written(Blend(((1.0, found["a"]), (1.0, found["d"])), "float32"), tmp_path)
    assert np.isnan(written(Blend(((1.0, found["a"]), (1.0, found["d"])), "float32"), tmp_path, allow_nonfinite=True)).all()
    with pytest.raises(LayoutError, match="E213"):
        written(Blend(((1.0, found["c"]), (1.0, found["c"])), "float16"), tmp_path)
    path, last = found["b"].storage.path, found["b"].storage.offset + found["b"].storage.size_bytes - 1
    content = bytearray(path.read_bytes())
    content[last] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="E109"):
        written(Blend(((1.0, found["a"]), (1.0, found["b"])), "float32"), tmp_path)


def test_counters_are_never_blended(tmp_path: Path) -> None:
    """Integers and booleans, unequal shapes, no terms and a divisor of zero are refused; scaling leaves a counter as it is."""
    found = refs(tmp_path, a=torch.ones(4), b=torch.ones(2, 2), n=torch.tensor([1, 2, 3, 4]), yes=torch.ones(4, dtype=torch.bool))
    for terms in (((1.0, found["a"]), (1.0, found["n"])), ((1.0, found["yes"]),), ((1.0, found["a"]), (1.0, found["b"])), ()):
        with pytest.raises(ValueError, match="a blend needs"):
            Blend(terms, "float32")
    with pytest.raises(ValueError, match="a divisor other than 0"):
        Blend(((1.0, found["a"]),), "float32", 0.0)
    assert scaled(found["n"], 0.5) is found["n"]
    twice = scaled(scaled(found["a"], 0.5), 0.5)
    assert np.all(written(twice, tmp_path) == 4.0)
    with TensorReader() as reader:
        assert [list(part) for part in arrays_of(reader, found["n"])] == [[1, 2, 3, 4]]


def test_empty_and_negative_zero(tmp_path: Path) -> None:
    """A tensor without elements gives none, and a mean of negative zeros keeps its sign."""
    found = refs(tmp_path, none=torch.ones(0, 3), zero=torch.tensor([-0.0]))
    assert written(Blend(((1.0, found["none"]),), "float32"), tmp_path).shape == (0, 3)
    assert np.signbit(written(Blend(((1.0, found["zero"]), (1.0, found["zero"])), "float32", 2.0), tmp_path)[0])
