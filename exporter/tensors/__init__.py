"""Tensors as ranges of bytes: dtypes, strided views, verified reading, and safetensors files.

What several stages share and none owns. Nothing here imports NumPy or torch before a tensor's values are asked for.
"""

from __future__ import annotations

from exporter.tensors.digests import checkpoint_digest
from exporter.tensors.dtypes import DTYPES, Dtype, dtype_from_safetensors, numpy_dtype
from exporter.tensors.reading import TensorReader, read_integer, read_tensor
from exporter.tensors.safetensors_header import SafetensorsEntry, SafetensorsHeader, read_header
from exporter.tensors.safetensors_writing import header_bytes, ordered_specs
from exporter.tensors.views import is_contiguous, num_spanned, size_bytes

__all__ = [
    "DTYPES",
    "Dtype",
    "SafetensorsEntry",
    "SafetensorsHeader",
    "TensorReader",
    "checkpoint_digest",
    "dtype_from_safetensors",
    "header_bytes",
    "is_contiguous",
    "num_spanned",
    "numpy_dtype",
    "ordered_specs",
    "read_header",
    "read_integer",
    "read_tensor",
    "size_bytes",
]
