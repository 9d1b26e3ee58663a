"""A call captured in a CUDA graph: its launches are replayed by one, so that the host does not decide how fast they follow each other.

A graph holds the addresses and shapes of the call it was captured from, and is of no use for another one.
Source: CUDA Driver API reference, modules Stream Management (capture) and Graph Management.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from exporter.trt_worker.serving.cuda import Driver

__all__ = ["CudaGraph", "capture"]

_THREAD_LOCAL = 1
"""Capture mode: only what this thread does is held to the rules of a capture; the heartbeat's thread goes on."""


class CudaGraph:
    """A graph that can be launched."""

    def __init__(self, driver: Driver, handle: ctypes.c_void_p) -> None:
        self._driver = driver
        self._handle = handle

    def launch(self, stream: int) -> None:
        """Run what was captured, on ``stream``."""
        self._driver.call("cuGraphLaunch", self._handle, stream)

    def free(self) -> None:
        """Give the graph back."""
        self._driver.call("cuGraphExecDestroy", self._handle)


def capture(driver: Driver, stream: int, enqueue: Callable[[], str]) -> CudaGraph | str:
    """Capture what ``enqueue`` puts on ``stream``.

    Args:
        enqueue: returns what went wrong, empty where nothing did. It must have run once outside of a capture, since the first call
            after new shapes does work that none allows.

    Returns:
        The graph, or why there is none; then the stream is as it was before.
    """
    problem = driver.attempt("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)
    if problem:
        return problem
    captured = ctypes.c_void_p()
    try:
        problem = enqueue()
    finally:  # a stream that is left in a capture takes no other work
        ended = driver.attempt("cuStreamEndCapture", stream, ctypes.byref(captured))
    problem = problem or ended
    if problem or not captured.value:
        if captured.value:
            driver.call("cuGraphDestroy", captured)
        return problem or "cuStreamEndCapture: nothing was captured"
    executable = ctypes.c_void_p()
    problem = driver.attempt("cuGraphInstantiateWithFlags", ctypes.byref(executable), captured, 0)
    driver.call("cuGraphDestroy", captured)
    return problem or CudaGraph(driver, executable)
