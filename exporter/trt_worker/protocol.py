"""The messages between this process and the worker: a JSON header and raw buffers, framed by length.

    4 bytes  magic ``EXW1``
    4 bytes  length of the header, little endian
    8 bytes  length of all buffers together
    header   JSON object; its key ``sizes`` holds the length of each buffer
    buffers

Both directions have a pipe of their own, apart from standard output and standard error, so nothing that a library prints
can stand between two messages. Used by both sides: standard library and numpy alone, Python 3.10 or newer.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PROTOCOL", "Buffer", "Message", "ProtocolError", "encode", "pack_arrays", "read_message", "unpack_arrays"]

PROTOCOL = 1
MAGIC = b"EXW1"
MAX_HEADER_BYTES = 64 << 20
MAX_PAYLOAD_BYTES = 1 << 40

_HEAD = struct.Struct("<4sIQ")

Buffer: TypeAlias = "bytes | bytearray | memoryview"


class ProtocolError(ValueError):
    """What came through the pipe is no message."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message: ``header["type"]`` says what it is."""

    header: dict[str, Any]
    buffers: tuple[memoryview, ...] = ()

    @property
    def type(self) -> str:
        """Return ``hello``, ``request``, ``cancel``, ``heartbeat``, ``progress``, ``result`` or ``error``."""
        return str(self.header.get("type", ""))


def encode(header: Mapping[str, Any], buffers: Sequence[Buffer] = ()) -> list[memoryview]:
    """Return the frame as pieces to be written one after the other; the buffers are not copied."""
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    text = json.dumps({**header, "sizes": [view.nbytes for view in views]}, separators=(",", ":")).encode()
    return [memoryview(_HEAD.pack(MAGIC, len(text), sum(view.nbytes for view in views)) + text), *views]


def read_message(read_exact: Callable[[int], bytearray | None]) -> Message | None:
    """Read one message.

    Args:
        read_exact: returns exactly that many bytes, or None where the pipe ends before the first of them; it raises EOFError
            where the pipe ends in the middle.

    Returns:
        The message, or None where the pipe ended between two messages.

    Raises:
        ProtocolError: the bytes are no message.
        EOFError: the pipe ended inside a message.
    """
    head = read_exact(_HEAD.size)
    if head is None:
        return None
    magic, header_size, payload_size = _HEAD.unpack(head)
    if magic != MAGIC:
        raise ProtocolError(f"a message starts with {bytes(magic)!r}")
    if header_size > MAX_HEADER_BYTES or payload_size > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"a message declares {header_size} + {payload_size} bytes")
    text = read_exact(header_size)
    if text is None:
        raise EOFError
    try:
        header = json.loads(text)
    except ValueError as err:
        raise ProtocolError("a header is not JSON") from err
    if not isinstance(header, dict):
        raise ProtocolError("a header is not an object")
    sizes = header.pop("sizes", None)
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes) or sum(sizes) != payload_size:
        raise ProtocolError("the sizes of the buffers do not add up")
    buffers = []
    for size in sizes:
        content = read_exact(size) if size else bytearray()
        if content is None:
            raise EOFError
        buffers.append(memoryview(content))
    return Message(header, tuple(buffers))


def pack_arrays(arrays: Mapping[str, NDArray[Any]]) -> tuple[list[dict[str, Any]], list[Buffer]]:
    """Return what a header says of ``arrays``, and their bytes in C order."""
    import numpy as np

    specs: list[dict[str, Any]] = []
    buffers: list[Buffer] = []
    for name, array in arrays.items():
        whole = np.ascontiguousarray(array)
        specs.append({"name": name, "dtype": array.dtype.name, "shape": list(array.shape)})
        buffers.append(whole.reshape(-1).view(np.uint8).data)
    return specs, buffers


def unpack_arrays(specs: Sequence[Mapping[str, Any]], buffers: Sequence[memoryview]) -> dict[str, NDArray[Any]]:
    """Return the arrays that ``pack_arrays`` packed.

    Raises:
        ProtocolError: a buffer does not have the size that its dtype and shape give.
    """
    import numpy as np

    if len(specs) != len(buffers):
        raise ProtocolError(f"{len(specs)} arrays are declared and {len(buffers)} buffers came")
    try:
        return {
            str(spec["name"]): np.frombuffer(buffer, np.dtype(spec["dtype"])).reshape(spec["shape"])
            for spec, buffer in zip(specs, buffers, strict=True)
        }
    except (TypeError, ValueError, KeyError) as err:
        raise ProtocolError(f"an array does not fit its declaration: {err}") from err
