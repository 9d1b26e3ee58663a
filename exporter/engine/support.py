"""Can this machine build and run an engine, and if not, what is missing?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from exporter import errors
from exporter.config import TensorrtConfig
from exporter.errors import EnvironmentLacking
from exporter.trt_worker import Worker

__all__ = ["EngineSupport", "probe", "require"]

_PROBE_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class EngineSupport:
    """What the worker found.

    Attributes:
        available: an engine can be built and run.
        missing: what is missing, in one line; empty where nothing is.
        help: how to get it.
        code: of the first thing that is missing.
        python: interpreter of the worker.
        gpu: name of the first visible GPU; empty where there is none.
        cuda_version: the newest CUDA that the driver supports.
    """

    available: bool
    missing: str = ""
    help: str = ""
    code: str = ""
    kind: str = ""
    """Class of the error that ``require`` raises."""
    python: str = ""
    python_version: str = ""
    tensorrt_version: str = ""
    gpu: str = ""
    compute_capability: str = ""
    num_multiprocessors: int = 0
    memory_bytes: int = 0
    driver: str = ""
    cuda_version: str = ""
    facts: dict[str, str] = field(default_factory=dict)


def probe(config: TensorrtConfig) -> EngineSupport:
    """Start the worker and ask it what there is. Never raises for what is missing."""
    try:
        with Worker(config.python) as worker:
            found = worker.request("probe", limit_s=_PROBE_LIMIT_S).value
    except EnvironmentLacking as err:
        return EngineSupport(
            available=False, missing=f"the worker: {err.problem}", help=err.help, code=err.code, kind=type(err).__name__,
            python=err.facts.get("interpreter", config.python), facts=err.facts,
        )  # fmt: skip
    return _support(found)


def _support(found: dict[str, Any]) -> EngineSupport:
    lacking: list[dict[str, str]] = found["lacking"]
    device: dict[str, Any] = found["device"] or {}
    first = lacking[0] if lacking else {}
    return EngineSupport(
        available=not lacking,
        missing="; ".join(item["what"] for item in lacking),
        help="\n".join(item["help"] for item in lacking),
        code=first.get("code", ""),
        kind=first.get("class", ""),
        python=found["python"],
        python_version=found["python_version"],
        tensorrt_version=found["tensorrt_version"],
        gpu=device.get("name", ""),
        compute_capability=device.get("compute_capability", ""),
        num_multiprocessors=device.get("num_multiprocessors", 0),
        memory_bytes=device.get("memory_bytes", 0),
        driver=device.get("driver_version", ""),
        cuda_version=device.get("cuda_version", ""),
        facts={"interpreter": found["python"]},
    )


def require(config: TensorrtConfig) -> EngineSupport:
    """Return what ``probe`` found where an engine can be built and run.

    Raises:
        EnvironmentLacking: something is missing (E851 to E858, exit status 6); the message names everything that is.
    """
    support = probe(config)
    if support.available:
        return support
    kind = getattr(errors, support.kind, EnvironmentLacking)
    raise kind(
        support.code,
        "an engine cannot be built or run here",
        facts={"missing": support.missing.replace("; ", "\n"), **support.facts},
        help=support.help,
    )
