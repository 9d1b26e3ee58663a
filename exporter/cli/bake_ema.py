"""``exporter bake-ema``: the averaged weights under the model's own names."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.options import config_option, config_with, output_option, screen_options, weights_options
from exporter.cli.screen import Screen

__all__ = ["command"]


@click.command("bake-ema")
@click.argument("checkpoint", required=False, metavar="[CKPT]", type=click.Path(path_type=Path))
@output_option("CKPT's stem + .baked.safetensors, in the work folder of exporter.toml, or in the current folder where there is none")
@click.option("--model", metavar="MODEL", help="Code that builds the model; needed where the average is a list without names.")
@weights_options
@config_option
@screen_options
@click.pass_obj
def command(screen: Screen, /, checkpoint: Path | None, output: Path | None, model: str | None, config_path: Path | None, **weights: object) -> None:
    """Choose the averaged weights of CKPT and write them under the model's own names.

    Nothing in CKPT is executed. Where it has no average, or more than one, the command refuses and lists what it found; the raw
    weights are taken with --weights raw only.
    """
    from exporter.artifacts import to_json
    from exporter.cli.folders import workspace_of
    from exporter.report import render_bake

    workspace = workspace_of(config_with(config_path, checkpoint=checkpoint, model=model, weights=dict(weights)), screen, bake=output)
    baked = workspace.weights
    screen.close()
    screen.show(render_bake(baked.summary, baked.path))
    screen.result(to_json(baked))
