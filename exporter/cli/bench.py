"""``exporter bench``: latency race against the unfused reference."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.options import config_option, config_with, screen_options
from exporter.cli.screen import Screen

__all__ = ["command"]


@click.command("bench")
@click.argument("artefacts", nargs=-1, metavar="[ARTEFACT]...", type=click.Path(path_type=Path))
@click.option("--min-speedup", type=float, help="Speed-up over the unfused model that is required.")
@click.option("--batch", type=click.IntRange(min=1), help="Batch size; default: 32.")
@click.option("--rounds", type=click.IntRange(min=8), help="Rounds of the race; default: 20, doubled at most twice.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of every contestant on the CPU; default: 2.")
@config_option
@screen_options
@click.pass_obj
def command(
    screen: Screen,
    /,
    artefacts: tuple[Path, ...],
    min_speedup: float | None,
    batch: int | None,
    rounds: int | None,
    threads: int | None,
    config_path: Path | None,
) -> int:
    """Race ARTEFACTs (.onnx, .pt2, .plan) against the unfused model in torch; without any, those of exporter.toml.

    Both run in interleaved blocks; the verdict is a confidence interval on the ratio of their medians, with a stated rate of
    false alarms. Exit status 0 if all pass, 3 if one does not.
    """
    from exporter.artifacts import to_json, worst
    from exporter.cli.folders import candidates_from, workspace_of
    from exporter.cli.verdicts import show_verdicts
    from exporter.gates import Gates

    settings = {"min_speedup": min_speedup, "batch": batch, "rounds": rounds, "threads": threads}
    workspace = workspace_of(config_with(config_path, latency=settings), screen)
    verdicts = Gates(workspace).latency(candidates_from(artefacts, workspace))
    screen.close()
    status = show_verdicts(screen, verdicts)
    screen.result({"outcome": worst(verdicts).value, "verdicts": to_json(verdicts)})
    return status
