"""Debug tensors: what an engine writes between its layers, read in the middle of a call, without another build.

The marks leave fusion as it is, so what TensorRT fused away is not seen, and names are those of the engine inspector.
Source: TensorRT Python API, ``INetworkDefinition.mark_unfused_tensors_as_debug_tensors``, ``IDebugListener``. The bindings print an exception of a
listener and drop what it returns, so the problem is kept here and raised after the call.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from exporter.errors import EngineBuildError
from exporter.trt_worker.serving.binding import Array
from exporter.trt_worker.serving.cuda import Driver
from exporter.trt_worker.serving.tensorrt_module import Messages
from exporter.trt_worker.serving.wishes import require

__all__ = ["DebugTensors", "Seen", "make_listener", "mark_debug_tensors"]

LIMIT_BYTES = 1 << 30
"""Of the host's memory that the tensors of one call may take together."""
_READ_AS = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "uint16", "INT8": "int8", "INT32": "int32", "INT64": "int64", "BOOL": "bool", "UINT8": "uint8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seen:
    """A tensor that an engine wrote.

    Attributes:
        value: None where it was not read; bfloat16 comes as float32, which holds it.
        unread: why, where it was not.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    value: Array | None = None
    unread: str = ""


def mark_debug_tensors(trt: Any, network: Any, messages: Messages) -> None:  # noqa: ANN401 - TensorRT has no types
    """Let the engine of ``network`` hand out every tensor that is left after fusion.

    Raises:
        EngineBuildError: this release does not have them (E546), or TensorRT refused (E502).
    """
    require(trt, "debug tensors", "debug_tensors")
    if not network.mark_unfused_tensors_as_debug_tensors():
        facts = {"setting": "mark_unfused_tensors_as_debug_tensors", **messages.facts()}
        raise EngineBuildError("E502", "TensorRT refused a build setting; nothing was built", facts=facts)


class DebugTensors:
    """What came in one call, in order.

    Args:
        limit_bytes: of all values together; a tensor that has no room any more is named and not read.
    """

    def __init__(self, driver: Driver, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self.seen: list[Seen] = []
        self.problem: BaseException | None = None
        self._driver = driver
        self._left_bytes = limit_bytes

    @contextlib.contextmanager
    def keeping_problems(self) -> Iterator[None]:
        """Keep what is raised inside: beyond it is printed and lost."""
        try:
            yield
        except BaseException as err:
            self.problem = self.problem or err
            raise

    def take(self, seen: Seen, address: int, stream: int | None) -> None:
        """Copy a tensor at once: what stands at ``address`` is there during the call alone.

        Args:
            seen: without its value.
            address: of the tensor.
            stream: that writes it; None where it lies on the host.
        """
        self.seen.append(self._read(seen, address, stream))

    def _read(self, seen: Seen, address: int, stream: int | None) -> Seen:
        if seen.dtype not in _READ_AS:
            return Seen(seen.name, seen.dtype, seen.shape, unread=f"{seen.dtype} is not read")
        if any(size < 0 for size in seen.shape):
            return Seen(seen.name, seen.dtype, seen.shape, unread="its shape is not known")
        if any(other.name == seen.name for other in self.seen):
            return Seen(seen.name, seen.dtype, seen.shape, unread="it was written before")
        size = math.prod(seen.shape) * np.dtype(_READ_AS[seen.dtype]).itemsize
        if size > self._left_bytes:
            return Seen(seen.name, seen.dtype, seen.shape, unread=f"no room for it beside the others ({size} bytes)")
        self._left_bytes -= size
        host = np.empty(seen.shape, _READ_AS[seen.dtype])
        if size and stream is None:
            ctypes.memmove(host.ctypes.data, address, size)
        elif size:
            self._driver.call("cuMemcpyDtoHAsync_v2", host.ctypes.data, address, size, stream)
            self._driver.call("cuStreamSynchronize", stream)
        return Seen(seen.name, seen.dtype, seen.shape, _widened(host) if seen.dtype == "BF16" else host)

    def check(self) -> None:
        """Raise what went wrong in a call of the listener.

        Raises:
            EngineBuildError: of CUDA (E523), or E527.
        """
        if isinstance(self.problem, EngineBuildError):
            raise self.problem
        if self.problem is not None:
            facts = {"found": f"{type(self.problem).__name__}: {self.problem}", "read before": len(self.seen)}
            raise EngineBuildError("E527", "a debug tensor of the engine could not be read", facts=facts) from self.problem


def _widened(bits: Array) -> Array:
    """Return bfloat16 as float32: its bits are the upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def make_listener(trt: Any, tensors: DebugTensors) -> Any:  # noqa: ANN401 - a class of TensorRT's own
    """Return a listener that hands every tensor to ``tensors``; the caller keeps it alive as long as a context knows it."""

    class Listener(trt.IDebugListener):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IDebugListener.__init__(self)
            self.tensors = tensors

        def process_debug_tensor(self, addr: int, location: Any, type: Any, shape: Any, name: str, stream: int) -> bool:  # noqa: A002, ANN401 - TensorRT's signature
            with self.tensors.keeping_problems():
                seen = Seen(str(name), str(type.name), tuple(int(size) for size in shape))
                self.tensors.take(seen, int(addr), None if location == trt.TensorLocation.HOST else int(stream))
            return True

    return Listener()
