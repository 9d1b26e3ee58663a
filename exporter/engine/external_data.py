"""The files beside an ONNX file that hold weights of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from exporter.artifacts import OnnxModel

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message

__all__ = ["external_files"]


def external_files(model: OnnxModel) -> tuple[str, ...]:
    """Return where the external data of a checked model lie, relative to its folder, sorted; empty where it has none."""
    import onnx

    proto = onnx.load(model.path, load_external_data=False)
    external = onnx.TensorProto.EXTERNAL
    found = {
        entry.value for tensor in _tensors(proto) if tensor.data_location == external for entry in tensor.external_data if entry.key == "location"
    }
    return tuple(sorted(found))


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Yield every tensor in a message, in subgraphs and functions too."""
    import onnx

    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for item in value if not hasattr(value, "ListFields") else (value,):
            if isinstance(item, onnx.TensorProto):
                yield item
            else:
                yield from _tensors(item)
