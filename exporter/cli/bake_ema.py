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
@click.option("--under", metavar="KEY", default="", help="With -o NAME.pt: write {KEY: weights}, as a trainer's own loader reads them.")
@click.option("--model", metavar="MODEL", help="Code that builds the model; needed where the average is a list without names.")
@weights_options
@config_option
@screen_options
@click.pass_obj
def command(
    screen: Screen,
    /,
    checkpoint: Path | None,
    output: Path | None,
    under: str,
    model: str | None,
    config_path: Path | None,
    **weights: object,
) -> None:
    """Choose the averaged weights of CKPT and write them under the model's own names.

    Nothing in CKPT is executed. Where it has no average, or more than one, the command refuses and lists what it found; the raw
    weights are taken with --weights raw only. -o NAME.pt or NAME.pth writes a torch file beside the usual one, which
    torch.load(weights_only=True) reads; any other name is that of the safetensors file.
    """
    from exporter.artifacts import to_json
    from exporter.cli.folders import workspace_of
    from exporter.report import render_bake
    from exporter.weights import TORCH_SUFFIXES, save_torch

    as_torch = output if output is not None and output.suffix in TORCH_SUFFIXES else None
    if under and as_torch is None:
        raise click.UsageError("--under needs -o with a name that ends in .pt or .pth")
    config = config_with(config_path, checkpoint=checkpoint, model=model, weights=dict(weights))
    workspace = workspace_of(config, screen, bake=None if as_torch else output)
    baked = workspace.weights
    if as_torch is not None:
        save_torch(baked, as_torch, under=under, keep=workspace.checkpoint.files or (workspace.checkpoint.path,))
    screen.close()
    screen.show(render_bake(baked.summary, as_torch or baked.path))
    screen.result({**to_json(baked), "torch": None if as_torch is None else str(as_torch)})
