"""The probe: what this interpreter and this machine have, without ever crashing and without raising."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from exporter.errors import EnvironmentLacking
from exporter.trt_worker.serving.cuda import DriverProblem, open_driver
from exporter.trt_worker.serving.tensorrt_module import INSTALL, find_version, import_tensorrt

__all__ = ["examine"]


def examine() -> dict[str, Any]:
    """Return what was found: ``lacking`` lists what is missing, in the order in which it has to be repaired.

    TensorRT is imported only where the driver works; elsewhere its version is read from its metadata.
    """
    lacking: list[dict[str, str]] = []
    found: dict[str, Any] = {"python": sys.executable, "python_version": ".".join(map(str, sys.version_info[:3])), "device": None}
    try:
        found["device"] = open_driver().device().to_json()
    except DriverProblem as err:
        lacking.append({
            "class": "NoGpu", "code": "E851", "what": f"a GPU: {err}",
            "help": "run on a machine with an NVIDIA GPU and its driver (nvidia-smi shows both)",
        })  # fmt: skip
    version = find_version()
    if version is None:
        lacking.append({"class": "MissingLibrary", "code": "E852", "what": "TensorRT: not installed for the worker's interpreter", "help": INSTALL})
    elif found["device"] is not None:
        try:
            version = str(import_tensorrt().__version__)
        except EnvironmentLacking as err:
            what = "; ".join([err.problem, *(f"{err.facts[key]}" for key in ("found",) if key in err.facts)])
            lacking.append({"class": type(err).__name__, "code": err.code, "what": f"TensorRT: {what}", "help": err.help})
    if importlib.util.find_spec("numpy") is None:
        lacking.append({
            "class": "MissingLibrary", "code": "E855", "what": "numpy: not installed for the worker's interpreter",
            "help": "install it for that interpreter: python -m pip install numpy",
        })  # fmt: skip
    return {**found, "tensorrt_version": version or "", "lacking": lacking}
