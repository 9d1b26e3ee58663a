"""``exporter init``: a commented exporter.toml for a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.options import LocationType, screen_options
from exporter.cli.screen import Screen

if TYPE_CHECKING:
    from exporter.artifacts import LayoutReading
    from exporter.locations import Location

__all__ = ["command"]


@click.command("init")
@click.argument("checkpoint", metavar="CKPT", type=LocationType())
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), default=Path("exporter.toml"), show_default=True, help="File to write."
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@screen_options
@click.pass_obj
def command(screen: Screen, /, checkpoint: Location, output: Path, force: bool) -> None:
    """Read CKPT and write a commented exporter.toml with what was found in it."""
    from exporter.checkpoint import open_checkpoint
    from exporter.errors import ArtifactError
    from exporter.files import write_bytes
    from exporter.weights import read_layout

    reading = read_layout(open_checkpoint(checkpoint))
    if output.exists() and not force:
        help_text = "--force replaces it, -o names another"
        raise ArtifactError("E735", "the file exists already; it was left as it is", facts={"file": output}, help=help_text)
    relative = os.path.relpath(checkpoint.absolute(), output.absolute().parent) if isinstance(checkpoint, Path) else str(checkpoint)
    write_bytes(output, _text(relative, reading).encode())
    screen.show([f"→ {output}   {'ready for exporter run' if reading.model else 'fill in [model] factory, then: exporter run'}"])
    screen.result({"path": str(output), "layout": reading.layout, "candidates": [c.name for c in reading.candidates], "model": reading.model})


def _text(checkpoint: str, reading: LayoutReading) -> str:
    candidates = reading.candidates
    if not candidates:
        choice = 'choice = "raw"            # the file has no average that was recognised'
    elif len(candidates) == 1:
        choice = f'choice = "ema"            # "raw" is the other; found: {candidates[0].name}, {candidates[0].num_tensors} tensors'
    else:
        names = ", ".join(c.name for c in candidates)
        choice = f'choice = "ema"\nema = ""                  # the file has several averages, name one: {names}'
    decay = "" if not candidates or candidates[0].decay is not None else "# decay = 0.9999          # what training used; the file does not say\n"
    factory = (
        f'factory = "auto"          # the checkpoint says {" ".join([reading.model, *(f"{k}={v!r}" for k, v in reading.model_arguments.items())])}'
        if reading.model
        else 'factory = ""              # "timm:resnet50", "package.module:callable" or "path/to/file.py:callable"; this code runs'
    )
    return f"""# exporter {checkpoint}: what `exporter run` does in this folder.
checkpoint = {_quoted(checkpoint)}

[model]
{factory}
# arguments = {{ num_classes = 10 }}
# outputs = ["logits"]
# [[model.inputs]]        # needed where there are no samples
# name = "x"
# shape = [2, 3, 224, 224]

[weights]
{choice}
{decay}
[samples]
# path = "samples.npz"    # one array per input, named like it
# labels = "label"        # array of integer labels: gives the accuracy of raw, EMA, folded and exported

[latency]
batch = 32
# min_speedup = 1.5       # without it: no more than 2 % slower than the unfused model

[tensorrt]
required = false          # true: a machine without TensorRT or a GPU ends with exit status 6
"""


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
