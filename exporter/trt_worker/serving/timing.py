"""The timing cache of a build: what the builder measured of its tactics, taken up and handed back.

A cache that TensorRT refuses is left aside, never forced: one of another device or version misleads the builder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exporter.errors import EngineBuildError
from exporter.trt_worker.serving.tensorrt_module import Messages

__all__ = ["begin_timing", "end_timing"]


def begin_timing(config: Any, content: bytes | memoryview, messages: Messages) -> str:  # noqa: ANN401 - TensorRT has no types
    """Attach a timing cache with ``content`` and return ``taken up``; ``refused`` where a new one was begun in its place, ``new`` where it is empty.

    Raises:
        EngineBuildError: TensorRT does not even take an empty one (E502).
    """
    state = "new"
    if len(content):
        cache = config.create_timing_cache(bytes(content))
        if cache is not None and config.set_timing_cache(cache, False):
            return "taken up"
        state = "refused"
    cache = config.create_timing_cache(b"")
    if cache is None or not config.set_timing_cache(cache, False):
        facts = {"setting": "set_timing_cache", **messages.facts()}
        raise EngineBuildError("E502", "TensorRT refused a build setting; nothing was built", facts=facts)
    return state


def end_timing(config: Any) -> Sequence[memoryview]:  # noqa: ANN401 - TensorRT has no types
    """Return the content of the attached timing cache as one buffer; nothing where there is none."""
    cache = config.get_timing_cache()
    memory = None if cache is None else cache.serialize()
    return () if memory is None else (memoryview(memory).cast("B"),)
