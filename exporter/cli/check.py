"""``exporter check``: parity of any artefacts against the unfused reference."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.options import config_option, config_with, screen_options
from exporter.cli.screen import Screen

__all__ = ["command"]


@click.command("check")
@click.argument("artefacts", nargs=-1, metavar="[ARTEFACT]...", type=click.Path(path_type=Path))
@config_option
@screen_options
@click.pass_obj
def command(screen: Screen, /, artefacts: tuple[Path, ...], config_path: Path | None) -> int:
    """Compare ARTEFACTs (.onnx, .pt2, .plan) with the unfused model in float64; without any, those of exporter.toml.

    Every output of the reference is compared, by name. Exit status 0 if all pass, 3 if one does not.
    """
    from exporter.artifacts import to_json, worst
    from exporter.cli.folders import candidates_from, workspace_of
    from exporter.cli.verdicts import show_verdicts
    from exporter.gates import Gates

    config = config_with(config_path)
    workspace = workspace_of(config, screen)
    verdicts = Gates(workspace).parity(candidates_from(artefacts, workspace))
    screen.close()
    status = show_verdicts(screen, verdicts)
    screen.result({"outcome": worst(verdicts).value, "verdicts": to_json(verdicts)})
    return status
