"""Where a command leaves its artefacts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exporter.cli.screen import Screen
from exporter.config import Config, find_config
from exporter.opening import open_artefact
from exporter.workspace import Workspace

if TYPE_CHECKING:
    from exporter.gates import Candidate

__all__ = ["candidates_from", "work_folder", "workspace_of"]


def workspace_of(config: Config, screen: Screen, **outputs: Path | None) -> Workspace:
    """Return the workspace of ``config``: the work folder where there is a configuration file, else the current folder.

    Args:
        config: the resolved configuration.
        screen: shows the progress.
        outputs: stage -> path that the user named; None where none was named.
    """
    named = {stage: path for stage, path in outputs.items() if path is not None}
    return Workspace(config, folder=work_folder(config), outputs=named, progress=screen.progress)


def work_folder(config: Config) -> Path:
    """Return the work folder where there is a configuration file, else the current folder."""
    return Path() if find_config(config.base) is None else config.work_dir


def candidates_from(paths: tuple[Path, ...], workspace: Workspace) -> tuple[Candidate, ...]:
    """Return the candidates that the user named, or every one that the configuration makes on this machine."""
    from exporter.gates import candidates_of, named_candidates

    if paths:
        return named_candidates(tuple((path, open_artefact(path)) for path in paths), workspace.config)
    config = workspace.config
    found = (*candidates_of(workspace.graph, config), *candidates_of(workspace.onnx, config))
    return found if workspace.plan is None else (*found, *candidates_of(workspace.plan, config))
