"""``exporter fuse-bn MODEL.onnx``: a file from anywhere; neither a checkpoint nor an ``exporter.toml`` is needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from exporter.cli.folds import show_fold
from exporter.cli.options import config_with, given_inputs
from exporter.cli.screen import Screen

__all__ = ["fuse_onnx", "names_onnx_file", "refuse_strangers"]


def names_onnx_file(model: str | None) -> bool:
    """Return whether MODEL is an ONNX file and not code."""
    return model is not None and Path(model).suffix.lower() == ".onnx"


def fuse_onnx(
    screen: Screen,
    path: Path,
    *,
    check: bool,
    output: Path | None,
    inputs: tuple[str, ...],
    config_path: Path | None,
    fold: Mapping[str, object],
    explain: str | None,
    strangers: Mapping[str, object],
) -> int:
    """Fold the file at ``path``; return the exit status.

    Args:
        fold: ``[fold]`` as the command line has it.
        explain: pattern of what to explain, None for nothing.
        strangers: option or argument -> value, of those that mean nothing to an ONNX file.

    Raises:
        click.UsageError: a stranger was given, or inputs that nothing is fed with.
    """
    refuse_strangers(path, strangers)
    if inputs and not check:
        raise click.UsageError("--input says what --check feeds to an ONNX file: give both, or neither")
    from exporter.artifacts import to_json, worst
    from exporter.cli.folders import work_folder
    from exporter.cli.verdicts import show_verdicts
    from exporter.onnx_export import read_onnx
    from exporter.onnx_folding import check_fold, feeds_for, fold_file

    config = config_with(config_path, fold=dict(fold))
    given = read_onnx(path)
    feeds = feeds_for(given.model, given_inputs(inputs), config) if check else ()
    screen.progress("fold", 0, 1)
    done = fold_file(given, output or work_folder(config) / f"{path.stem}.fused.onnx", config)
    screen.close()
    written = done.written
    result = {
        **show_fold(screen, done.folded, explain),
        "path": str(written.path),
        "sha256": written.digest.hex,
    }
    status = 0
    if check:
        verdicts = check_fold(done, feeds, config, screen.progress)
        screen.close()
        status = show_verdicts(screen, verdicts)
        result |= {"outcome": worst(verdicts).value, "verdicts": to_json(verdicts)}
    screen.show([f"→ {written.path}"])
    screen.result(result)
    return status


def refuse_strangers(path: Path, strangers: Mapping[str, object]) -> None:
    """Refuse what means nothing to an ONNX file.

    Raises:
        click.UsageError: one of the values was given.
    """
    given = [name for name, value in strangers.items() if value not in {None, False, ()}]
    if given:
        raise click.UsageError(f"{path.name} is an ONNX file, which holds its weights and its graph: leave out {', '.join(given)}")
