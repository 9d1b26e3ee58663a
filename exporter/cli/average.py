"""``exporter average``: the mean of several checkpoints of one model."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.options import LocationType, config_option, config_with, output_option, screen_options, weights_options
from exporter.cli.screen import Screen
from exporter.locations import Location

__all__ = ["command"]

_UNDER = "With -o NAME.pt: write {KEY: weights}, as a trainer's own loader reads them; auto: in the form of the trainer of the first CKPT."

_POST_HOC = "Make the EMA of this width from snapshots of ema-pytorch's PostHocEMA: CKPT is their folder, or each of them."


@click.command("average")
@click.argument("checkpoints", nargs=-1, required=True, metavar="CKPT...", type=LocationType())
@output_option("the first CKPT's stem + .averaged.safetensors, in the work folder of exporter.toml, or in the current folder where there is none")
@click.option("--under", metavar="KEY", default="", help=_UNDER)
@click.option("--share", metavar="NUMBERS", help="Share of each CKPT: 0.5,0.3,0.2; divided by their sum. Default: all count alike.")
@click.option("--post-hoc", type=float, metavar="SIGMA_REL", help=_POST_HOC)
@click.option("--sigma-rels", metavar="NUMBERS", help="With --post-hoc: the widths that training kept, in its order, as in 0.05,0.28.")
@click.option("--model", metavar="MODEL", help="Code that builds the model; needed where an average is a list without names.")
@weights_options
@config_option
@screen_options
@click.pass_obj
def command(
    screen: Screen,
    /,
    checkpoints: tuple[Location, ...],
    output: Path | None,
    under: str,
    share: str | None,
    post_hoc: float | None,
    sigma_rels: str | None,
    model: str | None,
    config_path: Path | None,
    **weights: object,
) -> None:
    """Write the mean of several CKPT of one model: SWA, or a model soup.

    From each CKPT the averaged weights are taken, or the raw ones with --weights raw, as bake-ema takes them. Names, shapes and dtypes
    have to be the same in all. The sum is taken in float64 and rounded once; integers and booleans come from the last CKPT.

    With --post-hoc: write an EMA of a width that was not kept while training, from the snapshots of others.
    """
    from exporter.artifacts import to_json
    from exporter.averaging import average_files, average_snapshots, output_of
    from exporter.cli.folders import work_folder
    from exporter.config import find_config
    from exporter.records import record_path
    from exporter.report import render_bake
    from exporter.weights import TORCH_SUFFIXES, TrainerForm, save_torch, trainer_form

    as_torch = output if output is not None and output.suffix in TORCH_SUFFIXES else None
    if under and as_torch is None:
        raise click.UsageError("--under needs -o with a name that ends in .pt or .pth")
    if post_hoc is None and sigma_rels is not None:
        raise click.UsageError("--sigma-rels needs --post-hoc")
    if post_hoc is not None and share is not None:
        raise click.UsageError("--share and --post-hoc exclude each other: the coefficients of the snapshots are computed")
    config = config_with(config_path, model=model, weights=dict(weights))
    between = as_torch.with_name(f".{as_torch.name}.averaged") if as_torch is not None and find_config(config.base) is None else None
    target = between or (output if output is not None and as_torch is None else output_of(checkpoints, work_folder(config)))
    try:
        if post_hoc is None:
            averaged, opened = average_files(config, checkpoints, target, shares=_numbers("--share", share), progress=screen.progress)
        else:
            widths = _numbers("--sigma-rels", sigma_rels) or ()
            averaged, opened = average_snapshots(config, checkpoints, target, sigma_rel=post_hoc, sigma_rels=widths, progress=screen.progress)
        if as_torch is not None:
            stripped = config.weights.strip_prefix
            form = trainer_form(opened[0], averaged.summary.layout, stripped=stripped) if under == "auto" else TrainerForm(under)
            save_torch(averaged, as_torch, form=form, keep=tuple(path for one in opened for path in one.files or (one.path,)))
    finally:
        if between is not None:
            for path in (between, record_path(between)):
                path.unlink(missing_ok=True)
    screen.close()
    screen.show(render_bake(averaged.summary, as_torch or averaged.path))
    kept = {"path": None} if between is not None else {}
    screen.result({**to_json(averaged), **kept, "torch": None if as_torch is None else str(as_torch)})


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Return numbers that are separated by commas."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as err:
        raise click.UsageError(f"{option} takes numbers separated by commas, as in 0.5,0.3,0.2: {text!r}") from err
