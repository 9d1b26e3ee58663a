"""What a search judges: the ONNX model with some islands, or the engine that is built from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from exporter.artifacts import OnnxModel
from exporter.config import Config
from exporter.gates import Candidate, candidates_of
from exporter.workspace import Workspace

if TYPE_CHECKING:
    from exporter.onnx_export import Trial

__all__ = ["SEARCH_LEVEL", "CandidateMaker", "EngineMaker", "OnnxMaker"]

SEARCH_LEVEL = 1
"""Optimization level at which engines are built while searching: a build takes a fraction of the time."""


class CandidateMaker(Protocol):
    """Turns a model with some islands into what is judged."""

    name: str

    def searched(self, trial: Trial) -> tuple[Candidate, ...]:
        """Return what is judged while searching."""

    def final(self, workspace: Workspace) -> tuple[Candidate, ...]:
        """Return what is judged in the end, made from the configuration of ``workspace`` as every artefact is."""


class OnnxMaker:
    """The ONNX model itself, in each configured provider of ONNX Runtime."""

    name = "onnx"

    def __init__(self, config: Config) -> None:
        self._config = config

    def searched(self, trial: Trial) -> tuple[Candidate, ...]:
        """Return the model."""
        return candidates_of(trial.model, self._config)

    def final(self, workspace: Workspace) -> tuple[Candidate, ...]:
        """Return the model of the workspace."""
        return candidates_of(workspace.onnx, self._config)


class EngineMaker:
    """The engine, built by the worker: quickly while searching, with the timing cache of all builds, and as configured in the end.

    Args:
        config: the resolved configuration.
        folder: for models and plans; nothing in it is kept.
        workspace: whose progress is told.
    """

    name = "tensorrt"

    def __init__(self, config: Config, folder: Path, workspace: Workspace) -> None:
        level = min(SEARCH_LEVEL, config.tensorrt.optimization_level)
        quick = config.tensorrt.replace(optimization_level=level, cache_mib=0, stripped=False, reproducible=False)
        self._config = config
        self._builder = Workspace(config.replace(tensorrt=quick), folder=folder, progress=workspace.progress)

    def searched(self, trial: Trial) -> tuple[Candidate, ...]:
        """Return the engine of the model; where nothing is stored in half precision it is asked for in float32, and judged as the others are."""
        model: OnnxModel = trial.model if trial.stored else dataclasses.replace(trial.model, precision="float32")
        plan = self._builder.build(model)
        return candidates_of(dataclasses.replace(plan, precision=_SHORT[self._config.onnx.precision]), self._config)

    def final(self, workspace: Workspace) -> tuple[Candidate, ...]:
        """Return the engine as it is configured."""
        return candidates_of(workspace.build(workspace.onnx), self._config)


_SHORT = {"float16": "fp16", "bfloat16": "bf16"}
