"""Finding and importing TensorRT: its version, its logger, and the traps of its constructors.

TensorRT is imported only after the driver was initialised: with no driver, ``Runtime`` of 8.6 ends the process by SIGSEGV and
``Builder`` raises a TypeError that says nothing of a GPU.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from exporter.errors import ExporterError, MissingLibrary, NoGpu, VersionMismatch

__all__ = ["FIRST_UNKNOWN", "OLDEST", "Messages", "check_version", "construct", "find_version", "import_tensorrt", "make_logger"]

OLDEST = (8, 5)
FIRST_UNKNOWN = (12, 0)
_KEPT_MESSAGES = 50
_DISTRIBUTIONS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-bindings")
INSTALL = "install it for the worker's interpreter: pip install 'exporter[tensorrt]', or name another one: [tensorrt] python"


def find_version() -> str | None:
    """Return TensorRT's version without importing it; empty where it is there and does not tell, None where it is not there."""
    if importlib.util.find_spec("tensorrt") is None:
        return None
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def import_tensorrt() -> Any:  # noqa: ANN401 - a module without types
    """Import TensorRT.

    Raises:
        MissingLibrary: it is not there (E852), or a library that it needs is not (E857).
        VersionMismatch: this version is not supported (E856).
    """
    interpreter = {"interpreter": sys.executable}
    if importlib.util.find_spec("tensorrt") is None:
        raise MissingLibrary("E852", "TensorRT is not installed for the worker's interpreter", facts=interpreter, help=INSTALL)
    try:
        trt = importlib.import_module("tensorrt")
    except (ImportError, OSError) as err:
        raise MissingLibrary("E857", "TensorRT is installed but cannot be imported", facts={**interpreter, "found": err}, help=INSTALL) from err
    check_version(str(trt.__version__))
    return trt


def check_version(version: str) -> None:
    """Refuse a version outside the supported range.

    Raises:
        VersionMismatch: E856.
    """
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if len(numbers) < 2 or not OLDEST <= numbers < FIRST_UNKNOWN:
        facts = {"interpreter": sys.executable, "found": version or "unknown", "expected": "8.5 up to 11.x"}
        raise VersionMismatch("E856", "this version of TensorRT is not supported", facts=facts, help="pip install 'tensorrt>=8.5,<12'")


class Messages:
    """The last warnings and errors that TensorRT logged."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT_MESSAGES)
        self._lock = threading.Lock()

    def add(self, level: str, text: str) -> None:
        """Keep a line; thread-safe."""
        with self._lock:
            self._lines.append(f"[{level}] {text.strip()}")

    def take(self) -> list[str]:
        """Return the lines and forget them."""
        with self._lock:
            lines = list(self._lines)
            self._lines.clear()
        return lines

    def facts(self, count: int = 6) -> dict[str, str]:
        """Return the newest lines as a fact of an error."""
        with self._lock:
            lines = list(self._lines)[-count:]
        return {"TensorRT": "\n".join(lines)} if lines else {}

    @contextlib.contextmanager
    def in_errors(self) -> Iterator[None]:
        """Let every error that is raised inside carry the newest lines."""
        try:
            yield
        except ExporterError as err:
            err.facts = {**self.facts(), **err.facts}
            raise


def make_logger(trt: Any, messages: Messages) -> Any:  # noqa: ANN401 - a class of TensorRT's own
    """Return a logger that keeps warnings and worse."""
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: "internal error",
        trt.ILogger.Severity.ERROR: "error",
        trt.ILogger.Severity.WARNING: "warning",
    }

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:  # noqa: ANN401 - an enumeration of TensorRT's own
            if severity in levels:
                messages.add(levels[severity], msg)

    return Logger()


def construct(make: Callable[..., Any], *arguments: Any, messages: Messages) -> Any:  # noqa: ANN401 - objects of TensorRT's own
    """Return ``make(*arguments)``.

    Raises:
        NoGpu: TensorRT made nothing, which is how it says that CUDA cannot be used (E858).
    """
    try:
        made = make(*arguments)
    except TypeError as err:
        if "factory function returned nullptr" not in str(err):
            raise
        made = None
    if made is None:
        raise NoGpu(
            "E858",
            "TensorRT finds no usable CUDA device",
            facts=messages.facts(),
            help="exporter doctor shows the driver; TensorRT may need a newer one",
        )
    return made
