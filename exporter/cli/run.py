"""``exporter run``: the whole job, and the gate."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.options import LocationType, config_option, config_with, fold_level_option, input_option, screen_options, weights_options
from exporter.cli.screen import Screen
from exporter.locations import Location

__all__ = ["command"]


@click.command("run")
@click.argument("checkpoint", required=False, metavar="[CKPT]", type=LocationType())
@click.option("--model", metavar="MODEL", help="Code that builds the network, which runs: timm:NAME, package.module:callable, file.py:callable.")
@input_option
@fold_level_option
@click.option("--min-speedup", type=float, help="Speed-up over the unfused model that is required.")
@click.option("--require-trt", is_flag=True, default=None, help="A machine without TensorRT or a GPU is exit status 6.")
@weights_options
@config_option
@screen_options
@click.pass_obj
def command(
    screen: Screen,
    /,
    checkpoint: Location | None,
    model: str | None,
    min_speedup: float | None,
    require_trt: bool | None,
    fold_level: str | None,
    fold_input: tuple[str, ...],
    inputs: tuple[str, ...],
    config_path: Path | None,
    **weights: object,
) -> int:
    """Do every stage that is out of date, judge the result, write a report.

    The exit status is the gate: 0 if every check passed, 3 if one did not, 6 if a required one could not run.

    \b
      exporter run                              as exporter.toml says
      exporter run --config fixtures/digits     the exporter.toml of another folder
      exporter run --min-speedup 2              and demand twice the speed of the unfused model
    """
    from exporter.artifacts import Outcome, to_json
    from exporter.pipeline import run
    from exporter.report import render_terminal

    config = config_with(
        config_path,
        checkpoint=checkpoint,
        model=model,
        inputs=inputs,
        weights=dict(weights),
        fold={"level": fold_level, "input": list(fold_input) or None},
        latency={"min_speedup": min_speedup},
        tensorrt={"required": require_trt},
    )
    report, folder = run(config, progress=screen.progress)
    screen.close()
    screen.show(render_terminal(report, folder))
    screen.result({"folder": str(folder), "report": to_json(report)})
    return 0 if report.outcome is Outcome.PASS else 3
