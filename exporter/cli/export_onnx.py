"""``exporter export-onnx``: the folded graph as a checked ONNX file."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.options import (
    LocationType,
    config_option,
    config_with,
    fold_level_option,
    input_option,
    output_option,
    precision_options,
    screen_options,
    weights_options,
)
from exporter.cli.screen import Screen
from exporter.locations import Location

__all__ = ["command"]


@click.command("export-onnx")
@click.argument("model", required=False, metavar="[MODEL]")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--checkpoint", type=LocationType(), help="Weights for MODEL, where exporter.toml names none.")
@input_option
@fold_level_option
@click.option("--opset", type=int, help="Operator-set version, 17 to 25; default: 20. 17 is what TensorRT 8 reads.")
@precision_options
@click.option("--static-batch", is_flag=True, help="Fix the batch at 1.")
@click.option("--check", is_flag=True, help="Compare with the unfused model, or with MODEL.onnx, in float64; the exit status is the verdict.")
@output_option("CKPT's stem + .onnx, or MODEL's + .float16.onnx, beside the other artefacts")
@weights_options
@config_option
@screen_options
@click.pass_obj
def command(
    screen: Screen,
    /,
    model: str | None,
    arguments: tuple[str, ...],
    checkpoint: Location | None,
    fold_level: str | None,
    fold_input: tuple[str, ...],
    opset: int | None,
    precision: str | None,
    float32: tuple[str, ...],
    static_batch: bool,
    check: bool,
    output: Path | None,
    inputs: tuple[str, ...],
    config_path: Path | None,
    **weights: object,
) -> int:
    """Export the folded model to ONNX, with the full checker run and the lineage in its metadata.

    MODEL is code that builds the network, and it runs: timm:resnet50, package.module:callable, path/to/file.py:callable.
    Without MODEL it is taken from exporter.toml.
    A MODEL.onnx is data, from any exporter: with --precision it is converted as it is, and needs neither a checkpoint nor an exporter.toml.
    """
    from exporter.artifacts import to_json, worst
    from exporter.cli.convert_onnx import convert_onnx
    from exporter.cli.folders import workspace_of
    from exporter.cli.fuse_onnx import names_onnx_file
    from exporter.cli.tables import onnx_lines
    from exporter.cli.verdicts import range_lines, show_verdicts
    from exporter.gates import Gates, candidates_of

    halves = {"precision": precision, "float32": list(float32) or None}
    if model is not None and names_onnx_file(model):
        options = {"choice": "--weights", **{name: f"--{name.replace('_', '-')}" for name in weights if name != "choice"}}
        strangers = {
            "KEY=VALUE": arguments,
            "--checkpoint": checkpoint,
            "--fold-level": fold_level,
            "--fold-input": fold_input,
            "--opset": opset,
            "--static-batch": static_batch,
            **{options[name]: weights[name] for name in weights},
        }
        return convert_onnx(screen, Path(model), check=check, output=output, inputs=inputs, config_path=config_path, onnx=halves, strangers=strangers)
    config = config_with(
        config_path,
        checkpoint=checkpoint,
        model=model,
        arguments=arguments,
        inputs=inputs,
        weights=dict(weights),
        fold={"level": fold_level, "input": list(fold_input) or None},
        onnx={"opset": opset, "dynamic_batch": False if static_batch else None, **halves},
    )
    workspace = workspace_of(config, screen, onnx=output)
    onnx = workspace.onnx
    verdicts = Gates(workspace).parity(candidates_of(onnx, config)) if check else ()
    screen.close()
    status = show_verdicts(screen, verdicts) if check else 0
    screen.show([*onnx_lines(onnx), *range_lines(onnx)])
    result = to_json(onnx)
    screen.result({**result, "outcome": worst(verdicts).value, "verdicts": to_json(verdicts)} if check else result)
    return status
