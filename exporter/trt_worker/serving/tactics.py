"""A build that takes the tactics of an earlier one: recorded key by key out of the timing cache, put back before a build, compared after it.

The cache alone is not enough: TensorRT times what it misses there, and not every release tells of every miss. So the tactics, not the bytes
of the cache, are what is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporter.errors import EngineBuildError
from exporter.trt_worker.serving.tensorrt_module import Messages
from exporter.trt_worker.serving.timing import begin_timing
from exporter.trt_worker.serving.wishes import require

__all__ = ["begin_tactics", "check_tactics", "read_tactics"]

_SHOWN_KEYS = 5
_ANEW = "with an empty [tensorrt] cache the tactics are recorded anew"


def begin_tactics(
    trt: Any,  # noqa: ANN401 - TensorRT has no types
    config: Any,  # noqa: ANN401
    content: bytes | memoryview,
    recorded: Mapping[str, str],
    messages: Messages,
) -> str:
    """Attach a timing cache with the recorded tactics and return ``replayed``; with none recorded an empty one, and ``new``.

    Args:
        trt: TensorRT.
        config: of the builder.
        content: the timing cache of the build whose tactics were recorded.
        recorded: key -> tactic, as ``read_tactics`` returned them; empty at the first build.
        messages: of the build.

    Raises:
        EngineBuildError: this release has no timing cache that can be edited (E546), or does not take the tactics (E560).
    """
    require(trt, "editable timing cache", "reproducible")
    config.set_flag(trt.BuilderFlag.EDITABLE_TIMING_CACHE)
    config.set_flag(trt.BuilderFlag.DISABLE_COMPILATION_CACHE)
    if not recorded:
        return begin_timing(config, b"", messages)
    config.set_flag(trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS)
    cache = config.create_timing_cache(bytes(content))
    if cache is None:
        raise _not_replayed("create_timing_cache made nothing of the cache", messages)
    times = {str(key): cache.query(key).timingMSec for key in cache.queryKeys()}
    refused = [
        text
        for text, tactic in recorded.items()
        if text not in times or not cache.update(trt.TimingCacheKey.parse(text), trt.TimingCacheValue(int(tactic, 16), times[text]))
    ]
    if refused:
        raise _not_replayed(f"no place for {_some(refused)}", messages)
    if not config.set_timing_cache(cache, False):
        raise _not_replayed("set_timing_cache returned False", messages)
    return "replayed"


def read_tactics(config: Any) -> dict[str, str]:  # noqa: ANN401 - TensorRT has no types
    """Return key -> tactic of everything in the attached timing cache, as hexadecimal numbers, by key."""
    cache = config.get_timing_cache()
    return dict(sorted((str(key), f"{cache.query(key).tacticHash:#018x}") for key in cache.queryKeys()))


def check_tactics(recorded: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Refuse a build that took other tactics than the recorded ones.

    Raises:
        EngineBuildError: E561, with the keys that differ.
    """
    other = [f"{key}: {found[key]} for {tactic}" for key, tactic in recorded.items() if found.get(key, tactic) != tactic]
    gone = [key for key in recorded if key not in found]
    new = [key for key in found if key not in recorded]
    if other or gone or new:
        facts = {"other tactics": _some(other), "not used": _some(gone), "timed anew": _some(new)}
        raise EngineBuildError(
            "E561",
            "the build took other tactics than the recorded ones; nothing was written",
            facts={k: v for k, v in facts.items() if v},
            help=_ANEW,
        )


def _not_replayed(found: str, messages: Messages) -> EngineBuildError:
    facts = {"found": found, **messages.facts()}
    return EngineBuildError("E560", "TensorRT does not take the recorded tactics; nothing was built", facts=facts, help=_ANEW)


def _some(texts: list[str]) -> str:
    more = f" and {len(texts) - _SHOWN_KEYS} more" if len(texts) > _SHOWN_KEYS else ""
    return ", ".join(texts[:_SHOWN_KEYS]) + more
