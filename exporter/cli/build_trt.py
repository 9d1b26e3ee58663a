"""``exporter build-trt``: the TensorRT engine."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.options import config_option, config_with, output_option, screen_options
from exporter.cli.screen import Screen

__all__ = ["command"]


@click.command("build-trt")
@click.argument("onnx", required=False, metavar="[ONNX]", type=click.Path(path_type=Path))
@click.option("--profile", "profiles", multiple=True, metavar="NAME:MIN,OPT,MAX", help="Shapes as 1x3x224x224; several allowed.")
@click.option("--tf32/--no-tf32", default=None, help="Let float32 products use TF32; default: no.")
@click.option("--workspace-mib", type=int, help="Workspace memory of the builder; default: 1024.")
@click.option("--optimization-level", type=click.IntRange(0, 5), help="Effort of the builder; default: 3.")
@click.option("--python", metavar="PATH", help="Interpreter of the worker: one with numpy and tensorrt.")
@output_option("ONNX's stem + .plan, beside the other artefacts")
@config_option
@screen_options
@click.pass_obj
def command(
    screen: Screen,
    /,
    onnx: Path | None,
    profiles: tuple[str, ...],
    tf32: bool | None,
    workspace_mib: int | None,
    optimization_level: int | None,
    python: str | None,
    output: Path | None,
    config_path: Path | None,
) -> None:
    """Build a TensorRT engine, with its sidecar, from ONNX or from what exporter.toml describes.

    TensorRT 8 reads opset 17 at most: a newer model is lowered to it first, and checked in ONNX Runtime. TensorRT runs in a
    process of its own. Where TensorRT or a GPU is missing the command says which, and how to get it, and
    leaves with exit status 6.
    """
    from exporter.artifacts import to_json
    from exporter.cli.folders import workspace_of
    from exporter.cli.tables import profile_text

    settings = {
        "profiles": list(profiles) or None,
        "tf32": tf32,
        "workspace_mib": workspace_mib,
        "optimization_level": optimization_level,
        "python": python,
        "required": True,
    }
    workspace = workspace_of(config_with(config_path, tensorrt=settings), screen, engine=output)
    workspace.require_engine()
    if onnx is None:
        model = workspace.onnx
    else:
        from exporter.onnx_export import open_onnx

        model = open_onnx(onnx)
    plan = workspace.build(model)
    lowered = workspace.onnx_opset17
    screen.close()
    shares = ", ".join(f"{name} {share:.0%}" for name, share in plan.realised_precision.items()) or "not told by the inspector"
    screen.show(
        [
            *([f"onnx → {lowered.path}   opset 17, for TensorRT {plan.tensorrt_version}"] if lowered is not None else []),
            f"engine → {plan.path}   TensorRT {plan.tensorrt_version}   {plan.precision}   {plan.build_seconds:.1f} s   {plan.gpu}",
            f"         realised precision: {shares}",
            *(f"         profile {index}: {profile_text(profile)}" for index, profile in enumerate(plan.profiles)),
            f"         sidecar: {plan.sidecar_path}",
        ]
    )
    screen.result(to_json(plan))
