"""``exporter fuse-bn``: fold BatchNorm, list what was folded and what was refused, compare."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.explaining import explain_option
from exporter.cli.folds import show_fold
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


@click.command("fuse-bn")
@click.argument("model", required=False, metavar="[MODEL]")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--check", is_flag=True, help="Compare with the unfused model in float64; the exit status is the verdict.")
@click.option("--checkpoint", type=LocationType(), help="Weights for MODEL, where exporter.toml names none.")
@input_option
@click.option("--keep", multiple=True, metavar="PATTERN", help="Leave BatchNorms with such names alone (several allowed).")
@fold_level_option
@explain_option
@click.option(
    "--plan", type=click.Path(path_type=Path, dir_okay=False), help="File to write the plan to, as JSON, which folds new weights of the same network."
)
@output_option("stem of CKPT + .fused.pt2, or of MODEL.onnx + .fused.onnx, beside the other artefacts")
@weights_options
@config_option
@screen_options
@click.pass_obj
def command(
    screen: Screen,
    /,
    model: str | None,
    arguments: tuple[str, ...],
    check: bool,
    checkpoint: Location | None,
    keep: tuple[str, ...],
    fold_level: str | None,
    fold_input: tuple[str, ...],
    explain: str | None,
    plan: Path | None,
    output: Path | None,
    inputs: tuple[str, ...],
    config_path: Path | None,
    **weights: object,
) -> int:
    """Fold every BatchNorm that can be folded exactly; name every other with its reason.

    MODEL is code that builds the network, and it runs: timm:resnet50, torchvision:resnet18, ultralytics:yolov8n.yaml,
    package.module:callable or path/to/file.py:callable, with KEY=VALUE arguments. Without MODEL it is taken from exporter.toml.
    A MODEL.onnx is data, from any exporter: it is folded as it is, and needs neither a checkpoint nor an exporter.toml.
    """
    from exporter.artifacts import to_json, worst
    from exporter.cli.folders import workspace_of
    from exporter.cli.fuse_onnx import fuse_onnx, names_onnx_file
    from exporter.cli.verdicts import show_verdicts

    fold = {"keep": list(keep) or None, "level": fold_level, "input": list(fold_input) or None}
    if model is not None and names_onnx_file(model):
        options = {"choice": "--weights", **{name: f"--{name.replace('_', '-')}" for name in weights if name != "choice"}}
        strangers = {
            "KEY=VALUE": arguments,
            "--checkpoint": checkpoint,
            "--fold-input": fold_input,
            "--plan": plan,
            **{options[name]: weights[name] for name in weights},
        }
        return fuse_onnx(
            screen,
            Path(model),
            check=check,
            output=output,
            inputs=inputs,
            config_path=config_path,
            fold=fold,
            explain=explain,
            strangers=strangers,
        )
    config = config_with(config_path, checkpoint=checkpoint, model=model, arguments=arguments, inputs=inputs, weights=dict(weights), fold=fold)
    workspace = workspace_of(config, screen, fold=output)
    graph = workspace.graph
    screen.close()
    result = {
        **show_fold(screen, graph, explain),
        "path": str(graph.path),
        "sha256": graph.digest.hex if graph.digest else "",
    }
    written = [f"→ {graph.path}"]
    if plan is not None:
        from exporter.graph.replay import write_plan
        from exporter.graph.replay.recording import plan_of

        write_plan(plan_of(graph.unfused, graph.inputs, config.fold), plan)
        written.append(f"→ {plan}")
        result["plan"] = str(plan)
    if not check:
        screen.show(written)
        screen.result(result)
        return 0

    from exporter.gates import Gates, candidates_of

    gates = Gates(workspace)
    verdicts = gates.parity(candidates_of(graph, config)) + gates.structure()
    screen.close()
    status = show_verdicts(screen, verdicts)
    screen.show(written)
    screen.result({**result, "outcome": worst(verdicts).value, "verdicts": to_json(verdicts)})
    return status
