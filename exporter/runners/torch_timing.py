"""Time calls of a torch module: each call on the CPU by ``perf_counter_ns``, each launch on CUDA by a pair of events."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["CpuCall", "CudaCall", "CudaGraphCall", "cuda_call"]

Running: TypeAlias = Callable[[], AbstractContextManager[None]]

_CAPTURE_WARMUPS = 3


class CpuCall:
    """Calls on the CPU; the inputs stay in place."""

    clock = "perf_counter"

    def __init__(self, module: torch.nn.Module, tensors: tuple[torch.Tensor, ...], running: Running) -> None:
        self._module, self._tensors, self._running = module, tensors, running

    def run_block(self, iterations: int) -> NDArray[np.float64]:
        """Run ``iterations`` calls; return the time of each in milliseconds, shape ``(iterations,)``."""
        times_ns = np.empty(iterations, np.int64)
        module, tensors, now = self._module, self._tensors, time.perf_counter_ns
        with self._running():
            for index in range(iterations):
                start = now()
                module(*tensors)
                times_ns[index] = now() - start
        return times_ns / 1e6


class CudaCall:
    """Launches on a stream of its own, a pair of events around each, one synchronisation per block."""

    clock = "cuda events"

    def __init__(self, module: torch.nn.Module, tensors: tuple[torch.Tensor, ...], running: Running, launch: str = "eager") -> None:
        self.launch = launch
        self._module, self._tensors, self._running = module, tensors, running
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream())

    def run_block(self, iterations: int) -> NDArray[np.float64]:
        """Run ``iterations`` calls; return the device time of each in milliseconds, shape ``(iterations,)``."""
        starts, ends = ([_event() for _ in range(iterations)] for _ in range(2))
        with self._running(), torch.cuda.stream(self._stream):
            for start, end in zip(starts, ends, strict=True):
                start.record(self._stream)
                self._launch()
                end.record(self._stream)
            self._stream.synchronize()
        return np.array([start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)], np.float64)

    def _launch(self) -> None:
        self._module(*self._tensors)


class CudaGraphCall(CudaCall):
    """The same with the launches of one call captured in a CUDA graph, which the block replays."""

    def __init__(self, module: torch.nn.Module, tensors: tuple[torch.Tensor, ...], running: Running) -> None:
        super().__init__(module, tensors, running, "cuda graph")
        self._graph = torch.cuda.CUDAGraph()
        with running(), torch.cuda.stream(self._stream):
            for _ in range(_CAPTURE_WARMUPS):
                module(*tensors)
            self._stream.synchronize()
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._kept = module(*tensors)

    def _launch(self) -> None:
        self._graph.replay()


def cuda_call(module: torch.nn.Module, tensors: tuple[torch.Tensor, ...], running: Running, *, cuda_graph: bool) -> CudaCall:
    """Return a call whose launches are captured in a CUDA graph, where that was asked for and torch can do it, else one that launches each time."""
    if not cuda_graph:
        return CudaCall(module, tensors, running)
    try:
        return CudaGraphCall(module, tensors, running)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as err:  # an operator that waits for the device cannot be captured
        found = str(err).strip().split("\n")[0]
    return CudaCall(module, tensors, running, f"eager (no CUDA graph: {found})")


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
