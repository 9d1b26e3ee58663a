"""``exporter check``: parity of any artefacts against the unfused reference."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.islands import find_and_show, islands_options
from exporter.cli.options import config_option, config_with, screen_options
from exporter.cli.screen import Screen

__all__ = ["command"]


@click.command("check")
@click.argument("artefacts", nargs=-1, metavar="[ARTEFACT]...", type=click.Path(path_type=Path))
@islands_options("the ONNX model", default=200)
@config_option
@screen_options
@click.pass_obj
def command(screen: Screen, /, artefacts: tuple[Path, ...], find_islands: bool, builds: int | None, config_path: Path | None) -> int:
    """Compare ARTEFACTs (.onnx, .pt2, .plan) with the unfused model in float64; without any, those of exporter.toml.

    Every output of the reference is compared, by name. Exit status 0 if all pass, 3 if one does not.

    With --find-islands: the ONNX model of exporter.toml, which asks for half precision, is made and judged with other nodes in float32
    until the smallest set is found that passes. Exit status 0 if there is one or none is needed, 3 if --builds did not suffice.
    """
    from exporter.artifacts import to_json, worst
    from exporter.cli.folders import candidates_from, workspace_of
    from exporter.cli.verdicts import show_verdicts
    from exporter.gates import Gates

    if builds is not None and not find_islands:
        raise click.UsageError("--builds needs --find-islands")
    config = config_with(config_path)
    workspace = workspace_of(config, screen)
    if find_islands:
        if artefacts:
            raise click.UsageError("--find-islands makes the ONNX model of exporter.toml: it takes no ARTEFACT")
        return find_and_show(screen, workspace, engine=False, builds=builds)
    verdicts = Gates(workspace).parity(candidates_from(artefacts, workspace))
    screen.close()
    status = show_verdicts(screen, verdicts)
    screen.result({"outcome": worst(verdicts).value, "verdicts": to_json(verdicts)})
    return status
