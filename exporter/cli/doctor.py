"""``exporter doctor``: what this machine can and cannot do, and why."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.options import config_option, config_with, screen_options
from exporter.cli.screen import Screen

__all__ = ["command"]


@click.command("doctor")
@config_option
@screen_options
@click.pass_obj
def command(screen: Screen, /, config_path: Path | None) -> None:
    """Say what this machine can do: stage by stage, with the version found, or what is missing and how to get it.

    Exit status 0: a missing GPU is a fact, not a failure. (exporter run with [tensorrt] required = true makes it one.)
    """
    from exporter.artifacts import to_json
    from exporter.cli.tables import columns
    from exporter.engine import probe
    from exporter.environment import describe_environment

    config = config_with(config_path)
    support = probe(config.tensorrt)
    environment = describe_environment(support)
    abilities = {
        "inspect, bake": ("yes", "needs nothing but Python and numpy"),
        "fold, check": _ability(environment, "torch"),
        "export ONNX": _ability(environment, "torch", "onnx", "onnxscript"),
        "run ONNX": _ability(environment, "onnxruntime-gpu", "onnxruntime", every=False),
        "build engines": ("yes", f"TensorRT {support.tensorrt_version}, {support.gpu}") if support.available else ("no", support.missing),
    }
    rows = [(what, can, why) for what, (can, why) in abilities.items()]
    screen.show(columns(rows, gap="   "))
    if not support.available and support.help:
        first, *more = support.help.split("\n")
        screen.show([f"help: {first}", *(f"      {line}" for line in more)])
    screen.show(["", *columns([(name, text) for name, text in environment.items()], gap="   ")])
    shown = {what: {"can": can, "why": why} for what, can, why in rows}
    screen.result({"abilities": shown, "environment": environment, "tensorrt": to_json(support)})


def _ability(environment: dict[str, str], *libraries: str, every: bool = True) -> tuple[str, str]:
    there = [f"{name} {environment[name]}" for name in libraries if name in environment]
    missing = [name for name in libraries if name not in environment]
    if there and (not missing or not every):
        return "yes", ", ".join(there)
    return "no", f"{', '.join(missing)} not installed: pip install {missing[0]}"
