"""``exporter bake-ema``: the averaged weights under the model's own names."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.options import LocationType, config_option, config_with, output_option, screen_options, weights_options
from exporter.cli.screen import Screen
from exporter.locations import Location

__all__ = ["command"]

_UNDER = "With -o NAME.pt: write {KEY: weights}; auto: in the form that the trainer's own loader reads, by the layout of CKPT."


@click.command("bake-ema")
@click.argument("checkpoint", required=False, metavar="[CKPT]", type=LocationType())
@output_option("CKPT's stem + .baked.safetensors, in the work folder of exporter.toml, or in the current folder where there is none")
@click.option(
    "--under",
    metavar="KEY",
    default="",
    help=_UNDER,
)
@click.option("--model", metavar="MODEL", help="Code that builds the model; needed where the average is a list without names.")
@weights_options
@click.option("--select", type=click.Choice(["best"]), help="Measure every copy of the weights on the samples, show the table, take the best.")
@click.option("--metric", metavar="MODULE:CALLABLE", help="What --select measures, on [samples] of exporter.toml; default: [metric], else accuracy.")
@config_option
@screen_options
@click.pass_obj
def command(
    screen: Screen,
    /,
    checkpoint: Location | None,
    output: Path | None,
    under: str,
    model: str | None,
    metric: str | None,
    config_path: Path | None,
    **weights: object,
) -> None:
    """Choose the averaged weights of CKPT and write them under the model's own names.

    Nothing in CKPT is executed. Where it has no average, or more than one, the command refuses and lists what it found; the raw
    weights are taken with --weights raw only. -o NAME.pt or NAME.pth writes a torch file, which torch.load(weights_only=True) reads;
    in the folder of an exporter.toml the usual file is kept beside it. Any other name is that of the safetensors file.
    """
    from exporter.artifacts import to_json
    from exporter.cli.folders import workspace_of
    from exporter.config import find_config
    from exporter.records import record_path
    from exporter.report import render_bake
    from exporter.weights import TORCH_SUFFIXES, TrainerForm, save_torch, trainer_form

    as_torch = output if output is not None and output.suffix in TORCH_SUFFIXES else None
    if under and as_torch is None:
        raise click.UsageError("--under needs -o with a name that ends in .pt or .pth")
    config = config_with(config_path, checkpoint=checkpoint, model=model, weights=dict(weights), metric={"function": metric})
    between = as_torch.with_name(f".{as_torch.name}.baked") if as_torch is not None and find_config(config.base) is None else None
    workspace = workspace_of(config, screen, bake=between if as_torch is not None else output)
    try:
        baked = workspace.weights
        if as_torch is not None:
            stripped = config.weights.strip_prefix
            form = trainer_form(workspace.checkpoint, baked.summary.layout, stripped=stripped) if under == "auto" else TrainerForm(under)
            save_torch(baked, as_torch, form=form, keep=workspace.checkpoint.files or (workspace.checkpoint.path,))
    finally:
        if between is not None:
            for path in (between, record_path(between)):
                path.unlink(missing_ok=True)
    screen.close()
    screen.show(render_bake(baked.summary, as_torch or baked.path))
    kept = {"path": None} if between is not None else {}
    screen.result({**to_json(baked), **kept, "torch": None if as_torch is None else str(as_torch)})
