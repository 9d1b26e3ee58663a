"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from exporter.cli.screen import Screen
from exporter.locations import Location, location_of

if TYPE_CHECKING:
    from exporter.config import Config, InputConfig

__all__ = [
    "LocationType",
    "config_option",
    "config_with",
    "fold_level_option",
    "given_inputs",
    "input_option",
    "model_arguments",
    "output_option",
    "precision_options",
    "screen_options",
    "weights_options",
]

Command = TypeVar("Command", bound=Callable[..., Any])


class LocationType(click.ParamType):  # type: ignore[type-arg]  # generic for type checkers, in some versions of click alone
    """A path, or a URL as it was typed."""

    name = "path"

    def convert(self, value: str | Location, param: click.Parameter | None, ctx: click.Context | None) -> Location:  # noqa: ARG002 - click's signature
        """Return what ``value`` names."""
        return location_of(value)


def screen_options(command: Command) -> Command:
    """Add ``--json`` and ``--quiet``, which every command has."""

    def set_json(context: click.Context, parameter: click.Parameter, value: bool) -> None:  # noqa: ARG001 - click's signature
        context.find_object(Screen).json |= value  # type: ignore[union-attr]

    def set_quiet(context: click.Context, parameter: click.Parameter, value: bool) -> None:  # noqa: ARG001 - click's signature
        context.find_object(Screen).quiet |= value  # type: ignore[union-attr]

    json_help = "Print the result as JSON on stdout, everything else on stderr."
    quiet_help = "No progress; with --json nothing but the JSON."
    command = click.option("-q", "--quiet", is_flag=True, expose_value=False, is_eager=True, callback=set_quiet, help=quiet_help)(command)
    return click.option("--json", is_flag=True, expose_value=False, is_eager=True, callback=set_json, help=json_help)(command)


def config_option(command: Command) -> Command:
    """Add ``--config``."""
    help_text = "Configuration file; by default exporter.toml, or [tool.exporter] of pyproject.toml, in the current folder."
    return click.option("-c", "--config", "config_path", type=click.Path(path_type=Path, dir_okay=True), help=help_text)(command)


def output_option(default: str) -> Callable[[Command], Command]:
    """Add ``--output``."""
    return click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help=f"File to write; default: {default}.")


def input_option(command: Command) -> Command:
    """Add ``--input``."""
    help_text = "Example input, batch first: image:2x3x224x224 or image:2x3x224x224:int64; several allowed. Default: from the samples."
    return click.option("--input", "inputs", multiple=True, metavar="NAME:SHAPE[:DTYPE]", help=help_text)(command)


def fold_level_option(command: Command) -> Command:
    """Add ``--fold-level`` and ``--fold-input``."""
    input_help = "Fold the normalisation of an input into the network, which takes raw pixels then: mean=0.5,std=0.5,scale=1/255 (several allowed)."
    command = click.option("--fold-input", multiple=True, metavar="[NAME:]mean=M,std=S", help=input_help)(command)
    help_text = "What to fold: back into producers alone; also what pays (default); whatever is exact."
    return click.option("--fold-level", type=click.Choice(["conservative", "default", "aggressive"]), help=help_text)(command)


def precision_options(command: Command) -> Command:
    """Add ``--precision`` and ``--float32``."""
    help_text = "Modules or nodes that stay in float32; several allowed."
    command = click.option("--float32", "float32", multiple=True, metavar="PATTERN", help=help_text)(command)
    help_text = "Of the network; inputs and outputs are float32. Default: float32."
    return click.option("--precision", type=click.Choice(["float32", "float16", "bfloat16", "int8", "fp8"]), help=help_text)(command)


def weights_options(command: Command) -> Command:
    """Add the options that choose the weights."""
    options = (
        click.option("--weights", "choice", type=click.Choice(["ema", "raw"]), help="Averaged or raw weights; default: ema. There is no fallback."),
        click.option("--ema", metavar="NAME|decay=D", help="Which average, where there are several: by name, or the only one of that decay."),
        click.option("--decay", type=float, help="Decay that training used, where the file does not say."),
        click.option("--allow-cold", is_flag=True, default=None, help="Accept an average that is still mostly the initial weights."),
        click.option("--allow-nonfinite", is_flag=True, default=None, help="Accept NaN and infinity in the weights."),
        click.option("--dtype", type=click.Choice(["keep", "float32", "float16", "bfloat16"]), help="Cast floating tensors; default: keep."),
        click.option(
            "--bn-stats",
            type=click.Choice(["auto", "raw", "ema", "recalibrate"]),
            help="BatchNorm statistics: as the layout keeps them (auto, the default), of one copy, or estimated anew on the samples.",
        ),
        click.option("--strip-prefix", metavar="PREFIX", help="Take what stands below PREFIX, under the names behind it: net."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def config_with(
    config_path: Path | None,
    *,
    checkpoint: Location | None = None,
    model: str | None = None,
    arguments: tuple[str, ...] = (),
    inputs: tuple[str, ...] = (),
    **sections: dict[str, Any],
) -> Config:
    """Return the configuration of the folder with flags laid over it.

    Args:
        config_path: file, or folder with one; None means the current folder, where a file may be missing.
        checkpoint: overrides the checkpoint of the file; relative to the current folder.
        model: MODEL of the command line, overrides ``[model] factory``.
        arguments: ``key=value`` for the factory.
        inputs: ``name:shape[:dtype]``, override ``[[model.inputs]]``.
        sections: section -> key -> value; None values are ignored.
    """
    from exporter.config import find_config, load_config
    from exporter.errors import ConfigError

    if config_path is not None and config_path.is_dir():
        found = find_config(config_path)
        if found is None:
            raise ConfigError("E707", "the folder holds no configuration", facts={"folder": config_path, "expected": "exporter.toml"})
        config_path = found
    path = config_path if config_path is not None else find_config(Path())
    here = path is None or path.parent == Path()
    named = checkpoint.absolute() if isinstance(checkpoint, Path) and not here else checkpoint
    flags: dict[str, dict[str, Any]] = {**sections, "": {"checkpoint": named}}
    if model is not None:
        flags["model"] = {"factory": _absolute_factory(model), "arguments": model_arguments(arguments)}
    if inputs:
        flags.setdefault("model", {})["inputs"] = [_input_table(text) for text in inputs]
    return load_config(path, base=None if path is not None else Path(), flags=flags)


def given_inputs(texts: tuple[str, ...]) -> tuple[InputConfig, ...]:
    """Return what ``--input`` says.

    Raises:
        click.UsageError: a text is not of the form ``NAME:SHAPE[:DTYPE]``.
    """
    from exporter.config import InputConfig

    return tuple(InputConfig(**_input_table(text)) for text in texts)


def model_arguments(texts: tuple[str, ...]) -> dict[str, Any]:
    """Return ``key=value`` words as keyword arguments; values are read as TOML, else as text.

    Raises:
        click.UsageError: a word has no ``=``.
    """
    from exporter.toml_text import value_from_text

    arguments = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise click.UsageError(f"{text!r} is not of the form key=value")
        arguments[key] = value_from_text(value)
    return arguments


def _input_table(text: str) -> dict[str, Any]:
    name, shape, dtype = (*text.split(":"), "float32")[:3] if text.count(":") in {1, 2} else ("", "", "")
    sizes = shape.split("x")
    if not name or not all(size.isdigit() for size in sizes):
        raise click.UsageError(f"{text!r} is not of the form NAME:SHAPE[:DTYPE], as in image:2x3x224x224")
    return {"name": name, "shape": [int(size) for size in sizes], "dtype": dtype}


def _absolute_factory(model: str) -> str:
    """Take a path on the command line relative to the current folder, not to the configuration file."""
    path, colon, name = model.rpartition(":")
    if colon and path.endswith(".py"):
        return f"{Path(path).absolute()}:{name}"
    if model.endswith(".pt2"):
        return str(Path(model).absolute())
    return model
