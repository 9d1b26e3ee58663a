"""The worker's own engine service on real bindings, with fakes where the bindings alone cannot go on.

The worker finds it through its path; ``EXPORTER_CONTRACT_SITE`` names the folder with the bindings, ``EXPORTER_CONTRACT_SCENARIO`` what
shall go wrong.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

sys.path.insert(0, os.environ["EXPORTER_CONTRACT_SITE"])

import tensorrt_bindings
from small_tensorrt import World

from exporter.trt_worker.serving import engine_service
from exporter.trt_worker.serving.tensorrt_module import check_version


def make_handlers():
    """Return the engine service's handlers, and one that tells what was asked of the library."""
    world = World(tensorrt_bindings, json.loads(os.environ.get("EXPORTER_CONTRACT_SCENARIO", "{}")))
    check_version(tensorrt_bindings.__version__)

    class Service(engine_service.EngineService):
        def tensorrt(self):
            return world.module()

    def record(call):
        driver = ctypes.CDLL("libcuda.so.1")
        names = ("LiveBlocks", "LiveEvents", "LiveStreams", "LiveGraphs", "Launches", "Synchronisations")
        counts = {name: getattr(driver, f"fake{name}")() for name in names}
        return {**world.record, **counts}, ()

    return {**Service().handlers(), "record": record}
