"""What this machine is: versions, processor, GPU; for reports and ``exporter doctor``."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.engine import EngineSupport

__all__ = ["describe_environment", "library_versions"]

_LIBRARIES = ("exporter", "torch", "numpy", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "safetensors", "tensorrt")


def library_versions() -> dict[str, str]:
    """Return library -> version of what is installed and takes part in an export; nothing is imported."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe_environment(support: EngineSupport | None = None) -> dict[str, str]:
    """Return versions, operating system, processor, and the GPU where ``support`` knows one."""
    facts = {
        "python": platform.python_version(),
        **library_versions(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor_name(),
        "logical cores": str(os.cpu_count() or "unknown"),
    }
    if support is not None:
        facts["gpu"] = support.gpu or "none"
        facts["tensorrt"] = support.tensorrt_version or "none"
    return facts


@functools.cache
def processor_name() -> str:
    """Return the processor's own name as Linux tells it, else what Python knows."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
