"""The program ``exporter``: its commands, its exit statuses, and what happens when something goes wrong.

Exit statuses: 0 pass · 2 usage · 3 the verdict is not PASS · 4 input refused · 5 model not supported · 6 the environment lacks
something required · 70 a bug of ours · 130 interrupted · 143 terminated.
"""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click

from exporter import __version__
from exporter.cli.screen import Screen
from exporter.errors import ExporterError, InternalError

__all__ = ["cli", "main"]

_COMMANDS = {
    "run": ("run", "Everything: every stage, the verdicts, a report; the gate."),
    "inspect": ("inspect", "What is inside a checkpoint; runs nothing of it."),
    "bake-ema": ("bake_ema", "The averaged weights under the model's own names."),
    "average": ("average", "The mean of several checkpoints: SWA, model soups."),
    "fuse-bn": ("fuse_bn", "Fold BatchNorm; list what was folded and what was kept."),
    "export-onnx": ("export_onnx", "The folded model as a checked ONNX file."),
    "build-trt": ("build_trt", "The TensorRT engine, with its sidecar."),
    "package": ("package", "A plan or ONNX model in a model repository of Triton."),
    "check": ("check", "Parity of artefacts with the unfused model in float64."),
    "bench": ("bench", "Latency of artefacts against the unfused model."),
    "report": ("report", "Render a run again."),
    "doctor": ("doctor", "What this machine can and cannot do, and why."),
    "init": ("init", "Write a commented exporter.toml for a checkpoint."),
}
"""Command -> its module, which is imported when the command runs, and its line in the list of commands."""

EXIT_BUG, EXIT_INTERRUPTED, EXIT_TERMINATED = 70, 130, 143


class _Commands(click.Group):
    """Imports the module of a command when it is asked for; lists them in the order of the job."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"exporter.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as err:
            import difflib

            near = difflib.get_close_matches(args[0], _COMMANDS, n=3, cutoff=0.5)
            if not near or "mean" in err.message:
                raise
            raise click.UsageError(f"{err.message} Did you mean {' or '.join(near)}?", ctx) from err


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, "--version", prog_name="exporter", message="%(prog)s %(version)s")
def cli() -> None:
    """Take a training checkpoint to a verified engine.

    Averaged (EMA) weights are baked in, BatchNorm is folded, the model is exported to ONNX and built with TensorRT, and every
    step is checked against the unfused model: numerical parity against float64, latency as a race.

    \b
      exporter inspect last.pt     what is inside; runs nothing of the file
      exporter init last.pt        write a commented exporter.toml
      exporter run                 everything; the exit status is the gate

    Exit status: 0 pass, 2 usage, 3 verdict not PASS, 4 input refused, 5 model not supported, 6 environment lacks something
    required, 70 a bug, 130 interrupted.
    """


class _Terminated(BaseException):
    """SIGTERM arrived."""


def _on_sigterm(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a signal handler
    raise _Terminated


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and leave with its exit status."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    sys.exit(_status(list(arguments) if arguments is not None else None))


def _status(arguments: list[str] | None) -> int:
    screen = Screen()
    try:
        with screen:
            status = cli.main(arguments, prog_name="exporter", obj=screen, standalone_mode=False)
    except ExporterError as err:
        screen.error(err)
        return err.exit_status
    except click.exceptions.Exit as err:
        return err.exit_code
    except click.ClickException as err:
        screen.close()
        err.show()
        screen.result({"error": {"code": "E700", "error": "UsageError", "exit_status": 2, "problem": err.format_message()}})
        return 2
    except (KeyboardInterrupt, click.Abort):
        screen.close()
        click.echo("interrupted; files are as they were or whole", err=True)
        return EXIT_INTERRUPTED
    except _Terminated:
        screen.close()
        click.echo("terminated; files are as they were or whole", err=True)
        return EXIT_TERMINATED
    except SystemExit:  # click's way to end a help page whose reader left
        return 0
    except Exception as err:  # noqa: BLE001 - the one place where a bug of ours is caught
        import traceback

        screen.close()
        traceback.print_exc()
        facts = {"found": f"{type(err).__name__}: {err}", "version": __version__}
        screen.error(InternalError("E901", "a bug in exporter", facts=facts, help="please report it with the lines above"))
        return EXIT_BUG
    return status if isinstance(status, int) else 0
