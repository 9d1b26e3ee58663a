"""The header of a safetensors file that we write; the same tensors and metadata give the same bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping

from exporter.artifacts import TensorSpec
from exporter.tensors.dtypes import DTYPES

__all__ = ["header_bytes", "ordered_specs", "spec_size_bytes"]

_ALIGNMENT = 8


def ordered_specs(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return ``specs`` in the order of the file: large elements first, so that every tensor is aligned; then by name."""
    return tuple(sorted(specs, key=lambda spec: (-DTYPES[spec.dtype].size_bytes, spec.name)))


def spec_size_bytes(spec: TensorSpec) -> int:
    """Return the bytes of a tensor with a fixed shape."""
    return math.prod(int(size) for size in spec.shape) * DTYPES[spec.dtype].size_bytes


def header_bytes(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Return length and JSON header for tensors that follow in this order, padded so that they begin at a multiple of 8."""
    table: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for spec in specs:
        end = position + spec_size_bytes(spec)
        table[spec.name] = {"dtype": DTYPES[spec.dtype].safetensors, "shape": list(spec.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
