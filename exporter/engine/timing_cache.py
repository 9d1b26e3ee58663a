"""The timing cache on disk: one file for each TensorRT, GPU, driver and set of flags, held by one build at a time.

Two builds at once would measure each other, so a build waits for the one before it. The file is written whole, by a rename, with a
keyed record; a file without one is begun anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.config import TensorrtConfig
from exporter.errors import ArtifactError, EngineBuildError
from exporter.files import digest_of_settings, write_bytes
from exporter.records import read_record, write_record
from exporter.trt_worker import find_plugins

__all__ = ["TimingCache", "held_timing_cache", "timing_key"]

_POLL_S = 0.1
_FLAGS = (
    "tf32", "strict_nans", "batch_invariant", "hardware_compatibility", "refittable", "stripped", "version_compatible", "weight_streaming",
    "reproducible", "debug_tensors",
)  # fmt: skip
_WAITING = "waiting for another build"


@dataclass(slots=True)
class TimingCache:
    """The file, and what is in it."""

    path: Path
    key: str
    content: bytes = b""
    tactics: Mapping[str, str] = field(default_factory=dict)
    """Key -> tactic of the build that filled it, where those were recorded."""

    def keep(self, content: bytes | memoryview, tactics: Mapping[str, str]) -> None:
        """Write ``content``, whole or not at all; only while the cache is held."""
        write_bytes(self.path, bytes(content))
        write_record(self.path, key=self.key, content={"kind": "timing cache", "tactics": dict(tactics)})


def timing_key(tensorrt_version: str, device: Mapping[str, Any], config: TensorrtConfig, *, precision: str) -> str:
    """Return what a timing cache belongs to: the version, the device with its clocks, the driver, and the flags that TensorRT ties it to."""
    return digest_of_settings({
        "tensorrt": tensorrt_version,
        "device": dict(device),
        "flags": {"precision": precision, **{name: getattr(config, name) for name in _FLAGS}},
        "plugins": [library.sha256 for library in find_plugins(config)],
    }).hex  # fmt: skip


@contextlib.contextmanager
def held_timing_cache(folder: Path, key: str, *, limit_s: float, progress: Callable[[str, int, int], bool] | None = None) -> Iterator[TimingCache]:
    """Hold the timing cache of ``key`` below ``folder``; no other build has it meanwhile.

    Raises:
        EngineBuildError: another build held it for ``limit_s`` seconds (E541), or ``progress`` returned False (E503).
        ArtifactError: the folder cannot be written to (E711).
    """
    path = folder / "timing" / f"{key[:32]}.cache"
    lock = path.with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as err:
        facts = {"file": lock, "found": err.strerror or err}
        raise ArtifactError("E711", "a file could not be written; nothing was changed", facts=facts, help="[tensorrt] cache") from err
    try:
        _take(descriptor, lock, limit_s, progress)
        record = read_record(path, key=key)
        yield TimingCache(path, key) if record is None else TimingCache(path, key, path.read_bytes(), record.get("tactics", {}))
    finally:
        os.close(descriptor)  # which gives the lock back, as the end of the process does


def _take(descriptor: int, lock: Path, limit_s: float, progress: Callable[[str, int, int], bool] | None) -> None:
    deadline_s = time.monotonic() + limit_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress is not None and progress(_WAITING, 0, 0) is False:
                raise EngineBuildError("E503", "the build was cancelled; nothing was written", facts={"during": _WAITING}) from None
            if time.monotonic() > deadline_s:
                facts = {"file": lock, "allowed": f"{limit_s:g} s"}
                help_text = "wait for the other build, or use another [tensorrt] cache"
                raise EngineBuildError("E541", "another build held the timing cache for too long", facts=facts, help=help_text) from None
            time.sleep(_POLL_S)
        else:
            return
