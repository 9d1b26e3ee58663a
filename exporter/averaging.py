"""Averages of several checkpoints as a job: every file opened, the model asked for names where a list has none, one output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from exporter.artifacts import Checkpoint, TensorSpec, Weights
from exporter.config import Config
from exporter.locations import Location
from exporter.weights import Combination, average_key, combine, identify, load_weights, mean_of, post_hoc, snapshots_of
from exporter.workspace import Progress, Workspace

__all__ = ["average_files", "average_snapshots", "output_of"]

How: TypeAlias = Callable[[Sequence[Checkpoint]], Combination]


def average_files(
    config: Config, paths: Sequence[Location], output: Path, *, shares: Sequence[float] | None = None, how: How | None = None, progress: Progress
) -> tuple[Weights, tuple[Checkpoint, ...]]:
    """Write the average of the checkpoints at ``paths`` to ``output``, unless it is there and up to date.

    Args:
        config: which weights of each; its own checkpoint is not looked at.
        paths: of the checkpoints.
        output: the safetensors file to write.
        shares: of each checkpoint; None means that all count alike.
        how: makes the combination instead: its coefficients, by checkpoint.
        progress: told about bytes done and bytes in all.

    Raises:
        ExporterError: as ``exporter.average``.
    """
    config = config.replace(weights=config.weights.replace(select=""))
    spaces = [Workspace(config.replace(checkpoint=path.absolute() if isinstance(path, Path) else path), progress=progress) for path in paths]
    checkpoints = tuple(space.checkpoint for space in spaces)
    combination = how(checkpoints) if how is not None else mean_of(checkpoints, shares)
    order = _parameter_order(spaces) if config.weights.choice == "ema" else None
    digests = [identify(checkpoint, config.weights.digest) for checkpoint in checkpoints]
    cached = load_weights(output, key=average_key(digests, combination, config.weights, parameter_order=order))
    if cached is not None:
        return cached, checkpoints

    def tell(done: int, total: int) -> None:
        if not progress("average", done, total):
            raise KeyboardInterrupt

    return combine(checkpoints, combination, config.weights, output, digests=digests, progress=tell, parameter_order=order), checkpoints


def average_snapshots(
    config: Config, paths: Sequence[Location], output: Path, *, sigma_rel: float, sigma_rels: Sequence[float], progress: Progress
) -> tuple[Weights, tuple[Checkpoint, ...]]:
    """Write the average of width ``sigma_rel`` that the snapshots at ``paths``, their files or one folder, make; see ``post_hoc``.

    Raises:
        ExporterError: as ``snapshots_of``, ``post_hoc`` and ``exporter.average``.
    """
    snapshots = snapshots_of(paths)
    combination = post_hoc(snapshots, sigma_rel, sigma_rels)
    return average_files(config, [snapshot.path for snapshot in snapshots], output, how=lambda _: combination, progress=progress)


def output_of(paths: Sequence[Location], folder: Path) -> Path:
    """Return where an average goes that was given no name: the first checkpoint's stem + ``.averaged.safetensors``."""
    return folder / f"{paths[0].stem}.averaged.safetensors"


def _parameter_order(spaces: Sequence[Workspace]) -> tuple[TensorSpec, ...] | None:
    """Return the order of the model's parameters, from the first checkpoint that needs it."""
    return next((order for space in spaces if (order := space.parameter_order) is not None), None)
