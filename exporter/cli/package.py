"""``exporter package``: an artefact as a server takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from exporter.cli.options import config_option, config_with, screen_options
from exporter.cli.screen import Screen

__all__ = ["command"]


@click.command("package")
@click.argument("artefact", required=False, metavar="[ARTEFACT]", type=click.Path(path_type=Path))
@click.option(
    "--triton", "folder", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Model repository of Triton to add the model to."
)
@click.option("--name", metavar="NAME", help="Name of the model in the repository; default: the artefact's stem.")
@click.option("--max-batch", type=click.IntRange(min=1), help="Largest batch; default: of the plan's profiles, or the largest that is checked.")
@click.option("--instances", type=click.IntRange(min=1), default=1, show_default=True, help="Copies of the model on each device.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True, help="Where an ONNX model runs; a plan needs a GPU."
)
@click.option(
    "--queue-delay-us", type=click.IntRange(min=0), default=100, show_default=True, help="Microseconds that a request waits for others to join."
)
@config_option
@screen_options
@click.pass_obj
def command(
    screen: Screen,
    /,
    artefact: Path | None,
    folder: Path,
    name: str | None,
    max_batch: int | None,
    instances: int,
    device: Literal["auto", "cpu", "gpu"],
    queue_delay_us: int,
    config_path: Path | None,
) -> None:
    """Add ARTEFACT (.plan or .onnx) to a model repository of Triton Inference Server, as the newest version of its model.

    Without ARTEFACT it is the plan that exporter.toml describes, or the ONNX model on a machine that cannot build one.
    """
    from exporter.artifacts import OnnxModel, Plan, to_json
    from exporter.cli.folders import workspace_of
    from exporter.errors import ArtifactError
    from exporter.opening import open_artefact
    from exporter.packaging import Serving, write_repository

    workspace = workspace_of(config_with(config_path), screen)
    if artefact is None and workspace.config.tensorrt.required:
        workspace.require_engine()
    found = open_artefact(artefact) if artefact is not None else workspace.plan or workspace.onnx
    if not isinstance(found, (Plan, OnnxModel)):
        raise ArtifactError("E531", "this is nothing that Triton can serve", facts={"found": artefact, "expected": ".plan or .onnx"})
    serving = Serving(
        instances=instances,
        device=device,
        max_batch=max_batch,
        checked_batch=workspace.largest_batch,
        queue_delay_us=queue_delay_us,
    )
    package = write_repository(found, folder, name or found.path.stem, serving)
    screen.close()
    batch = f"batches up to {package.max_batch}" if package.max_batch else "no batch axis"
    version = f"version {package.version}{'' if package.state == 'made' else ', up to date'}"
    screen.show(
        [
            f"triton → {package.path}   {version}   {'TensorRT' if isinstance(found, Plan) else 'ONNX Runtime'}   {batch}",
            *(f"         {remark}" for remark in package.remarks),
        ]
    )
    screen.result(to_json(package))
