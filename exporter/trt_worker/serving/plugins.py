"""Registering plugins: TensorRT's own once, then libraries by their paths, whose digests are compared before their code runs."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter.errors import ArtifactError, EngineBuildError
from exporter.trt_worker.serving.tensorrt_module import Messages, make_logger
from exporter.trt_worker.serving.wishes import require

__all__ = ["Plugins"]


class Plugins:
    """What this process has registered; a library stays until the process ends."""

    def __init__(self) -> None:
        self._messages = Messages()
        self._logger: Any = None  # TensorRT keeps a pointer to it
        self._has_own = False
        self._loaded: set[str] = set()

    def register(self, trt: Any, libraries: Sequence[Mapping[str, str]]) -> None:  # noqa: ANN401 - TensorRT has no types
        """Register TensorRT's own plugins, and those of ``libraries`` that are not registered yet.

        A network that needs none goes on where TensorRT does not register its own; of one that does, the parser names the node.

        Raises:
            ArtifactError: a library has another digest than when it was looked at (E557).
            EngineBuildError: TensorRT is too old to load libraries (E546), or does not take one (E558).
        """
        if self._logger is None:
            self._logger = make_logger(trt, self._messages)
            self._has_own = bool(trt.init_libnvinfer_plugins(self._logger, ""))
        if not libraries:
            return
        require(trt, "plugin libraries", "plugins")
        if not self._has_own:
            raise self._refused("TensorRT's own", "init_libnvinfer_plugins returned False")
        registry = trt.get_plugin_registry()
        for library in libraries:
            if library["sha256"] in self._loaded:
                continue
            _check_digest(library)
            if registry.load_library(library["path"]) is None:
                raise self._refused(
                    library["path"], "load_library returned None: a plugin of it is registered already, or it exports no getPluginCreators"
                )
            self._loaded.add(library["sha256"])

    def _refused(self, library: str, found: str) -> EngineBuildError:
        facts = {"library": library, "found": found, **self._messages.facts()}
        return EngineBuildError("E558", "TensorRT did not register the plugins of a library", facts=facts)


def _check_digest(library: Mapping[str, str]) -> None:
    try:
        found = hashlib.sha256(Path(library["path"]).read_bytes()).hexdigest()
    except OSError as err:
        found = err.strerror or str(err)
    if not hmac.compare_digest(found, library["sha256"]):
        facts = {"file": library["path"], "found": found[:64], "expected": library["sha256"]}
        raise ArtifactError("E557", "a plugin library is not the one that it was", facts=facts, help="run the command again")
