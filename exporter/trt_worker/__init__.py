"""The TensorRT worker: a process of its own, with an interpreter of its own, that alone touches TensorRT and CUDA.

A crash inside a builder is then a clear error here, device memory is really freed, and a TensorRT that belongs to another
Python can be used (``[tensorrt] python``). This side starts the process and talks to it; ``serving`` is the other side and
needs the standard library, numpy, TensorRT and the NVIDIA driver, nothing else of this package's dependencies.
"""

from __future__ import annotations

from exporter.trt_worker.client import Reply, Service, Worker
from exporter.trt_worker.loading import loading_arguments
from exporter.trt_worker.plugins import PluginLibrary, find_plugins, plugins_of_plan
from exporter.trt_worker.protocol import pack_arrays, unpack_arrays

__all__ = [
    "PluginLibrary",
    "Reply",
    "Service",
    "Worker",
    "find_plugins",
    "loading_arguments",
    "pack_arrays",
    "plugins_of_plan",
    "unpack_arrays",
]
