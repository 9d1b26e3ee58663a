"""What one call needs: device buffers at fixed addresses, host memory for what TensorRT reads on the host, events, a captured graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.trt_worker.serving.cuda import Driver
from exporter.trt_worker.serving.cuda_graph import CudaGraph
from exporter.trt_worker.serving.output_allocator import OutputMemory

__all__ = ["Array", "Binding", "on_host"]

Array = NDArray[Any]

_ALIGNMENT = 256
"""TensorRT's own for every tensor address."""


class Binding:
    """The memory of one set of input shapes.

    Attributes:
        addresses: device memory by tensor.
        on_host: tensors that TensorRT reads or writes on the host, by name: those that shapes are computed from.
        outputs: host side of the outputs whose shape is known before a call.
        grown: memory of the outputs whose shape depends on the data, and their allocators.
        launch: how calls are launched: ``cuda graph``, or ``enqueue`` with the reason in brackets where a graph was wished for; empty
            where that has to be settled.
    """

    def __init__(self, driver: Driver, profile: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.profile = profile
        self.shapes = dict(shapes)
        self.addresses: dict[str, int] = {}
        self.on_host: dict[str, Array] = {}
        self.outputs: dict[str, Array] = {}
        self.grown: dict[str, tuple[OutputMemory, Any]] = {}
        self.events: list[int] = []
        self.graph: CudaGraph | None = None
        self.graph_wish = "never"
        self.launch = ""
        self._driver = driver

    def drop_graph(self) -> None:
        """Forget the captured graph: it belongs to shapes and addresses that the context does not have any more."""
        graph, self.graph, self.launch = self.graph, None, ""
        if graph is not None:
            graph.free()

    def free(self) -> None:
        """Give the graph, the device memory and the events back."""
        self.drop_graph()
        for address in self.addresses.values():
            self._driver.call("cuMemFree_v2", address)
        for memory, _ in self.grown.values():
            memory.free()
        for event in self.events:
            self._driver.call("cuEventDestroy_v2", event)
        self.addresses, self.grown, self.events = {}, {}, []


def on_host(shape: tuple[int, ...], dtype: str) -> Array:
    """Return an array of zeros in host memory, aligned as TensorRT wants it."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    room = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)
