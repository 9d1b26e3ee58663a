"""``exporter build-trt``: the TensorRT engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.islands import find_and_show, islands_options
from exporter.cli.options import LocationType, config_option, config_with, output_option, precision_options, screen_options
from exporter.cli.screen import Screen
from exporter.locations import Location

if TYPE_CHECKING:
    from exporter.artifacts import Plan
    from exporter.config import Config

__all__ = ["command"]


@click.command("build-trt")
@click.argument("source", required=False, metavar="[ONNX]", type=LocationType())
@click.option("--profile", "profiles", multiple=True, metavar="NAME:MIN,OPT,MAX", help="Shapes as 1x3x224x224; several allowed.")
@precision_options
@click.option("--tf32/--no-tf32", default=None, help="Let float32 products use TF32; default: no.")
@click.option("--workspace-mib", type=int, help="Workspace memory of the builder; default: 1024.")
@click.option("--optimization-level", type=click.IntRange(0, 5), help="Effort of the builder; default: 3.")
@click.option("--refittable/--no-refittable", default=None, help="Let the engine take new weights later; slower, and never raced. Default: no.")
@click.option("--stripped/--no-stripped", default=None, help="Leave the weights out of the plan, for --refit to put in; default: no.")
@click.option(
    "--plugin", "plugins", multiple=True, type=click.Path(path_type=Path), help="Library with plugins, loaded in the worker; several allowed."
)
@click.option("--reproducible/--no-reproducible", default=None, help="Record the tactics, or take the recorded ones; default: no.")
@click.option(
    "--debug-tensors/--no-debug-tensors", default=None, help="Name the first tensor of the engine that departs on FAIL; never raced. Default: no."
)
@click.option("--version-compatible/--no-version-compatible", default=None, help="Let later releases of TensorRT run the plan; default: no.")
@click.option(
    "--refit", "refitted", metavar="PLAN", type=click.Path(path_type=Path), help="Give PLAN the weights of a checkpoint, then check its parity."
)
@click.option("--python", metavar="PATH", help="Interpreter of the worker: one with numpy and tensorrt.")
@islands_options("the engine", default=60)
@output_option("ONNX's stem + .plan, beside the other artefacts")
@config_option
@screen_options
@click.pass_obj
def command(
    screen: Screen,
    /,
    source: Location | None,
    profiles: tuple[str, ...],
    precision: str | None,
    float32: tuple[str, ...],
    tf32: bool | None,
    workspace_mib: int | None,
    optimization_level: int | None,
    refittable: bool | None,
    stripped: bool | None,
    plugins: tuple[Path, ...],
    reproducible: bool | None,
    debug_tensors: bool | None,
    version_compatible: bool | None,
    refitted: Path | None,
    python: str | None,
    find_islands: bool,
    builds: int | None,
    output: Path | None,
    config_path: Path | None,
) -> int:
    """Build a TensorRT engine, with its sidecar, from ONNX or from what exporter.toml describes.

    With --refit, ONNX is a checkpoint instead, by default that of exporter.toml: its weights are baked, folded and put into PLAN, which was
    built --refittable from the same network, and parity is run. Exit status 3 if that does not pass.

    The engine has the precision of its ONNX model. A float32 ONNX is first converted to another --precision, in a file of its own.

    With --find-islands no engine is left: engines are built and judged with other nodes in float32 until the smallest set is found
    that passes parity, quickly first, and the last one as configured.

    TensorRT 8 reads opset 17 at most: a newer model is lowered to it first, and checked in ONNX Runtime. TensorRT runs in a
    process of its own. Where TensorRT or a GPU is missing the command says which, and how to get it, and
    leaves with exit status 6.
    """
    from exporter.artifacts import to_json
    from exporter.cli.folders import workspace_of
    from exporter.engine import check_settings

    settings = {
        "profiles": list(profiles) or None,
        "tf32": tf32,
        "workspace_mib": workspace_mib,
        "optimization_level": optimization_level,
        "refittable": refittable,
        "stripped": stripped,
        "plugins": [str(path.absolute()) for path in plugins] or None,
        "reproducible": reproducible,
        "debug_tensors": debug_tensors,
        "version_compatible": version_compatible,
        "python": python,
        "required": True,
    }
    halves = {"precision": precision, "float32": list(float32) or None}
    if find_islands and (source is not None or refitted is not None or output is not None):
        raise click.UsageError("--find-islands builds engines of what exporter.toml describes and leaves none: it takes no ONNX, --refit or --output")
    if builds is not None and not find_islands:
        raise click.UsageError("--builds needs --find-islands")
    if refitted is not None:
        return _refit(screen, refitted, config_with(config_path, checkpoint=source, tensorrt=settings, onnx=halves), output)
    workspace = workspace_of(config_with(config_path, tensorrt=settings, onnx=halves), screen, engine=output)
    check_settings(workspace.config.tensorrt)
    if find_islands:
        return find_and_show(screen, workspace, engine=True, builds=builds)
    workspace.require_engine()
    if source is None:
        model = workspace.onnx
    else:
        from exporter.onnx_precision import as_asked

        if not isinstance(source, Path):
            raise click.UsageError(f"an ONNX file on this machine is needed, not {source}")
        model = as_asked(source, workspace, insists=precision is not None)
    plan = workspace.build(model)
    screen.close()
    screen.show(_lines(plan))
    screen.result(to_json(plan))
    return 0


def _refit(screen: Screen, path: Path, config: Config, output: Path | None) -> int:
    from exporter.artifacts import Plan, to_json, worst
    from exporter.cli.folders import workspace_of
    from exporter.cli.verdicts import show_verdicts
    from exporter.engine import refit_engine, require_refittable
    from exporter.errors import ArtifactError
    from exporter.gates import Gates, candidates_of
    from exporter.opening import open_artefact

    plan = open_artefact(path)
    if not isinstance(plan, Plan):
        raise ArtifactError("E732", "this is no artefact that can be run", facts={"file": path, "expected": ".plan"})
    require_refittable(plan)
    workspace = workspace_of(config, screen, engine=output)
    workspace.require_engine()
    target = output or workspace.folder / f"{workspace.stem}.plan"
    refitted = refit_engine(plan, workspace.onnx, target, config.tensorrt, progress=workspace.progress)
    verdicts = Gates(workspace).parity(candidates_of(refitted, config))
    screen.close()
    screen.show(_lines(refitted))
    status = show_verdicts(screen, verdicts)
    screen.result({"plan": to_json(refitted), "outcome": worst(verdicts).value, "verdicts": to_json(verdicts)})
    return status


def _lines(plan: Plan) -> list[str]:
    from exporter.cli.tables import profile_text

    shares = ", ".join(f"{name} {share:.0%}" for name, share in plan.realised_precision.items()) or "not told by the inspector"
    return [
        f"engine → {plan.path}   TensorRT {plan.tensorrt_version}   {plan.precision}   {plan.build_seconds:.1f} s   {plan.gpu}",
        f"         realised precision: {shares}",
        *(f"         profile {index}: {profile_text(profile)}" for index, profile in enumerate(plan.profiles)),
        f"         sidecar: {plan.sidecar_path}",
    ]
