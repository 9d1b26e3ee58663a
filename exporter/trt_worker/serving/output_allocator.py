"""Memory for outputs whose shape depends on the data: TensorRT asks for it in the middle of a call and tells the shape.

Source: TensorRT Python API, ``IOutputAllocator``. TensorRT calls ``reallocate_output`` up to 8.6 and ``reallocate_output_async`` from 10 on;
what they return is taken for an address, and an exception would be printed and lost, so they return 0 and keep the problem.
"""

from __future__ import annotations

from typing import Any

from exporter.errors import EngineBuildError
from exporter.trt_worker.serving.cuda import Driver

__all__ = ["OutputMemory", "make_allocator"]


class OutputMemory:
    """Device memory of one output, which grows.

    Attributes:
        fill: byte that the memory is filled with before a call writes to it; None leaves what was there.
        shape: as TensorRT told it in the last call, None where it told nothing.
        problem: why memory could not be had, where it could not.
    """

    def __init__(self, driver: Driver, stream: int) -> None:
        self.address = 0
        self.capacity_bytes = 0
        self.fill: int | None = None
        self.shape: tuple[int, ...] | None = None
        self.problem: EngineBuildError | None = None
        self._driver = driver
        self._stream = stream

    def begin(self, fill: int | None) -> None:
        """Forget what the last call told."""
        self.fill, self.shape, self.problem = fill, None, None

    def provide(self, size_bytes: int, alignment: int, stream: int | None) -> int:
        """Return the address of at least ``size_bytes``, 0 where there is none; what was in the memory is not kept."""
        try:
            self._grow(max(1, size_bytes), max(1, alignment))
            if self.fill is not None:
                on = self._stream if stream is None else stream
                self._driver.call("cuMemsetD8Async", self.address, self.fill, self.capacity_bytes, on)
        except EngineBuildError as err:
            self.problem = err
            return 0
        return self.address

    def _grow(self, size_bytes: int, alignment: int) -> None:
        if size_bytes > self.capacity_bytes:
            self.free()
            self.address = self._driver.allocate(size_bytes)
            self.capacity_bytes = size_bytes
        if self.address % alignment:
            facts = {"call": "cuMemAlloc_v2", "found": f"address {self.address:#x}", "expected": f"a multiple of {alignment}"}
            raise EngineBuildError("E523", "a CUDA call gave memory that TensorRT cannot use", facts=facts)

    def free(self) -> None:
        """Give the memory back."""
        if self.address:
            address, self.address, self.capacity_bytes = self.address, 0, 0
            self._driver.call("cuMemFree_v2", address)


def make_allocator(trt: Any, memory: OutputMemory) -> Any:  # noqa: ANN401 - a class of TensorRT's own
    """Return an allocator for TensorRT; the caller keeps it alive as long as a context knows it."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)

        def reallocate_output(self, tensor_name: str, memory_address: int, size: int, alignment: int) -> int:  # noqa: ARG002 - TensorRT's signature
            return memory.provide(int(size), int(alignment), None)

        def reallocate_output_async(self, tensor_name: str, memory_address: int, size: int, alignment: int, stream: int) -> int:  # noqa: ARG002
            return memory.provide(int(size), int(alignment), int(stream))

        def notify_shape(self, tensor_name: str, shape: Any) -> None:  # noqa: ANN401, ARG002 - TensorRT's signature
            memory.shape = tuple(int(size) for size in shape)

    return Allocator()
