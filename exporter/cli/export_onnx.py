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
@click.option(
    "--precision", type=click.Choice(["float32", "float16", "bfloat16"]), help="Of the network; inputs and outputs are float32. Default: float32."
)
@click.option("--float32", "float32", multiple=True, metavar="PATTERN", help="Modules or nodes that stay in float32; several allowed.")
@click.option("--static-batch", is_flag=True, help="Fix the batch at 1.")
@output_option("CKPT's stem + .onnx, beside the other artefacts")
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
    output: Path | None,
    inputs: tuple[str, ...],
    config_path: Path | None,
    **weights: object,
) -> None:
    """Export the folded model to ONNX, with the full checker run and the lineage in its metadata.

    MODEL is code that builds the network, and it runs: timm:resnet50, package.module:callable, path/to/file.py:callable.
    Without MODEL it is taken from exporter.toml.
    """
    from exporter.artifacts import to_json
    from exporter.cli.folders import workspace_of
    from exporter.cli.tables import size_text, spec_text

    config = config_with(
        config_path,
        checkpoint=checkpoint,
        model=model,
        arguments=arguments,
        inputs=inputs,
        weights=dict(weights),
        fold={"level": fold_level, "input": list(fold_input) or None},
        onnx={"opset": opset, "dynamic_batch": False if static_batch else None, "precision": precision, "float32": list(float32) or None},
    )
    onnx = workspace_of(config, screen, onnx=output).onnx
    screen.close()
    size = size_text(onnx.path.stat().st_size)
    graph = f"{onnx.num_nodes} nodes, {onnx.num_batch_norms} BatchNormalization"
    lines = [f"onnx → {onnx.path}   opset {onnx.opset}   IR {onnx.ir_version}   {graph}   {size}"]
    if onnx.precision != "float32":
        lines.append(f"       operators: {onnx.metadata['exporter.precision_shares']}")
    lines += [f"       input   {spec_text(spec)}" for spec in onnx.inputs]
    lines += [f"       output  {spec_text(spec)}" for spec in onnx.outputs]
    screen.show(lines)
    screen.result(to_json(onnx))
