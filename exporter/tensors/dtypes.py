"""The dtypes that checkpoints hold, under torch's names, and what each is called elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DTYPES", "SHORT_NAMES", "Dtype", "dtype_from_safetensors", "numpy_dtype"]


@dataclass(frozen=True, slots=True)
class Dtype:
    """One dtype.

    Attributes:
        name: torch's name without ``torch.``.
        kind: what arithmetic it stands for; only ``float`` can be averaged, cast and non-finite.
        safetensors: its name in a safetensors header; empty where that format has none.
        numpy: its name in NumPy or ml_dtypes; empty where neither has it.
    """

    name: str
    size_bytes: int
    kind: Literal["float", "int", "bool", "complex", "quantized"]
    safetensors: str
    numpy: str


_TABLE = (
    Dtype("float64", 8, "float", "F64", "float64"),
    Dtype("float32", 4, "float", "F32", "float32"),
    Dtype("float16", 2, "float", "F16", "float16"),
    Dtype("bfloat16", 2, "float", "BF16", "bfloat16"),
    Dtype("float8_e4m3fn", 1, "float", "F8_E4M3", "float8_e4m3fn"),
    Dtype("float8_e5m2", 1, "float", "F8_E5M2", "float8_e5m2"),
    Dtype("float8_e4m3fnuz", 1, "float", "F8_E4M3FNUZ", "float8_e4m3fnuz"),
    Dtype("float8_e5m2fnuz", 1, "float", "F8_E5M2FNUZ", "float8_e5m2fnuz"),
    Dtype("float8_e8m0fnu", 1, "float", "F8_E8M0", "float8_e8m0fnu"),
    Dtype("int64", 8, "int", "I64", "int64"),
    Dtype("int32", 4, "int", "I32", "int32"),
    Dtype("int16", 2, "int", "I16", "int16"),
    Dtype("int8", 1, "int", "I8", "int8"),
    Dtype("uint64", 8, "int", "U64", "uint64"),
    Dtype("uint32", 4, "int", "U32", "uint32"),
    Dtype("uint16", 2, "int", "U16", "uint16"),
    Dtype("uint8", 1, "int", "U8", "uint8"),
    Dtype("bool", 1, "bool", "BOOL", "bool"),
    Dtype("complex64", 8, "complex", "C64", "complex64"),
    Dtype("complex128", 16, "complex", "", "complex128"),
    Dtype("complex32", 4, "complex", "", ""),
    Dtype("qint8", 1, "quantized", "", ""),
    Dtype("quint8", 1, "quantized", "", ""),
    Dtype("qint32", 4, "quantized", "", ""),
)

DTYPES: dict[str, Dtype] = {dtype.name: dtype for dtype in _TABLE}
"""torch's name -> dtype."""

SHORT_NAMES = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""Names for the screen."""

_BY_SAFETENSORS = {dtype.safetensors: dtype for dtype in _TABLE if dtype.safetensors}


def dtype_from_safetensors(name: str) -> Dtype | None:
    """Return the dtype that a safetensors header calls ``name``, None where it is not one of ours."""
    return _BY_SAFETENSORS.get(name)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the little-endian NumPy dtype for torch's ``name``; bfloat16 and float8 are those of ml_dtypes.

    Raises:
        KeyError: neither NumPy nor ml_dtypes has it.
    """
    import numpy as np

    known = DTYPES[name].numpy
    if not known:
        raise KeyError(name)
    if known.startswith(("bfloat", "float8")):
        import ml_dtypes

        small: np.dtype[Any] = np.dtype(getattr(ml_dtypes, known))
        return small
    plain: np.dtype[Any] = np.dtype(known).newbyteorder("<")
    return plain
