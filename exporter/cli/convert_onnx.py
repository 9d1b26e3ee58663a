"""``exporter export-onnx FILE.onnx --precision``: a file from anywhere in half precision; neither a checkpoint nor an ``exporter.toml`` is needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from exporter.cli.fuse_onnx import refuse_strangers
from exporter.cli.options import config_with, given_inputs
from exporter.cli.screen import Screen

__all__ = ["convert_onnx"]


def convert_onnx(
    screen: Screen,
    path: Path,
    *,
    check: bool,
    output: Path | None,
    inputs: tuple[str, ...],
    config_path: Path | None,
    onnx: Mapping[str, object],
    strangers: Mapping[str, object],
) -> int:
    """Write the file at ``path`` in another precision; return the exit status.

    Args:
        onnx: ``[onnx]`` as the command line has it.
        strangers: option or argument -> value, of those that mean nothing to an ONNX file.

    Raises:
        click.UsageError: a stranger was given, or no precision.
    """
    from exporter.artifacts import to_json, worst
    from exporter.cli.folders import work_folder
    from exporter.cli.tables import onnx_lines
    from exporter.cli.verdicts import range_lines, show_verdicts
    from exporter.onnx_export import read_onnx
    from exporter.onnx_precision import check_conversion, convert_file, feeds_of

    refuse_strangers(path, strangers)
    config = config_with(config_path, onnx=dict(onnx))
    precision = config.onnx.precision
    if precision == "float32":
        raise click.UsageError(f"{path.name} is an ONNX file: say what to make of it, --precision float16 or bfloat16")
    given = read_onnx(path)
    feeds = feeds_of(given.model, given_inputs(inputs), config, check=check)
    screen.progress("onnx", 0, 1)
    done = convert_file(given, output or work_folder(config) / f"{path.stem}.{precision}.onnx", config, feeds)
    screen.progress("onnx", 1, 1)
    verdicts = check_conversion(given, done, feeds, config, screen.progress) if check else ()
    screen.close()
    status = show_verdicts(screen, verdicts) if check else 0
    screen.show([*onnx_lines(done.written), *([] if check else range_lines(done.written))])
    result = to_json(done.written)
    screen.result({**result, "outcome": worst(verdicts).value, "verdicts": to_json(verdicts)} if check else result)
    return status
