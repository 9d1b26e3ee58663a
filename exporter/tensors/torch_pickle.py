"""The pickle of a torch state dict, written opcode by opcode: ``torch.load(weights_only=True)`` reads it, and nothing is imported for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from exporter.artifacts import TensorSpec

__all__ = ["STORAGE_CLASSES", "state_dict_pickle"]

STORAGE_CLASSES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage",
}
"""dtype -> torch's class of storages; other dtypes have none."""

_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
_REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def state_dict_pickle(specs: Iterable[TensorSpec], *, under: str = "", beside: Mapping[str, str] | None = None) -> bytes:
    """Return the pickle of an OrderedDict of tensors; tensor number i is all of storage ``i``, row-major.

    Args:
        specs: with fixed shapes, in the order of the dict.
        under: the key of a dict that holds the OrderedDict; empty for the OrderedDict itself.
        beside: key -> text beside it in that dict.
    """
    entries = b"".join(_text(spec.name) + _tensor(spec, str(number)) for number, spec in enumerate(specs))
    content = _ORDERED_DICT + b"(" + entries + b"u"
    others = b"".join(_text(key) + _text(value) + b"s" for key, value in (beside or {}).items())
    return b"\x80\x02" + (b"}" + others + _text(under) + content + b"s" if under else content) + b"."


def _tensor(spec: TensorSpec, key: str) -> bytes:
    shape = [int(size) for size in spec.shape]
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    storage = _text("storage") + f"ctorch\n{STORAGE_CLASSES[spec.dtype]}\n".encode() + _text(key) + _text("cpu") + _integer(math.prod(shape))
    persistent = b"(" + storage + b"tQ"
    return _REBUILD + b"(" + persistent + _integer(0) + _tuple(shape) + _tuple(strides) + b"\x89" + _ORDERED_DICT + b"tR"


def _tuple(numbers: list[int]) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t"


def _integer(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + value.to_bytes(4, "little")
    return b"\x8a\x09" + value.to_bytes(9, "little")


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded
