"""Where a command writes: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from typing_extensions import Self

    from exporter.errors import ExporterError

__all__ = ["Screen"]

_COLOURS = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow", "NOT_RUN": "yellow", "✓": "green", "✗": "red"}
_WORDS = re.compile(r"(?<!\w)(PASS|FAIL|INCONCLUSIVE|NOT_RUN|✓|✗)(?!\w)")


class Screen:
    """What the user sees of one command.

    Attributes:
        json: print the machine-readable result, and nothing else, on stdout.
        quiet: print results only, without progress.
    """

    def __init__(self) -> None:
        self.json = False
        self.quiet = False
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def show(self, lines: list[str]) -> None:
        """Print lines for a person: on stdout, or on stderr where stdout belongs to ``--json``."""
        if self.json and self.quiet:
            return
        for line in lines:
            self._write(self._coloured(line), err=self.json)

    def result(self, value: Any) -> None:  # noqa: ANN401 - any JSON value
        """Print ``value`` as JSON on stdout, if ``--json`` was given."""
        if self.json:
            self._write(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False))

    def error(self, err: ExporterError) -> None:
        """Print an error on stderr; with ``--json`` also as JSON on stdout."""
        self.close()
        first, newline, rest = str(err).partition("\n")
        head, bracket, problem = first.partition("] ")
        text = click.style(head + bracket.rstrip(), fg="red", bold=True) + " " + problem + newline + rest
        click.echo(text, err=True, color=self._colour(sys.stderr))
        self.result({"error": err.to_json()})

    def progress(self, what: str, done: int, total: int) -> bool:
        """Draw a progress bar on a terminal; always True: nothing was asked to stop."""
        if self.quiet or not sys.stderr.isatty():
            return True
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._progress.start()
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)
        return True

    @property
    def width(self) -> int:
        """Columns of the terminal; 120 where the screen is none."""
        return shutil.get_terminal_size((120, 24)).columns

    @property
    def is_plain(self) -> bool:
        """Whether the screen can show ASCII only."""
        encoding = (sys.stderr if self.json else sys.stdout).encoding or "ascii"
        try:
            "○│├…".encode(encoding)
        except (UnicodeEncodeError, LookupError):
            return True
        return False

    def close(self) -> None:
        """Take the progress bars off the screen."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._tasks.clear()

    def __enter__(self) -> Self:
        """Return the screen; progress bars are gone when the block ends."""
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        """Take the progress bars off the screen."""
        self.close()

    @staticmethod
    def _write(text: str, *, err: bool = False) -> None:
        """Print; a reader that left (``| head``) does not change what the command does, nor its exit status."""
        try:
            click.echo(text, err=err)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), (sys.stderr if err else sys.stdout).fileno())

    def _coloured(self, line: str) -> str:
        if not self._colour(sys.stderr if self.json else sys.stdout):
            return line
        return _WORDS.sub(lambda match: click.style(match[0], fg=_COLOURS[match[0]], bold=True), line)

    @staticmethod
    def _colour(stream: Any) -> bool:  # noqa: ANN401 - any text stream
        return bool(stream.isatty()) and not os.environ.get("NO_COLOR")
