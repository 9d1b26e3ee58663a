"""Errors that a person can act on.

    ExporterError
    ├─ InputRefused        (4)  CheckpointError · LayoutError · SampleError · ArtifactError
    │  └─ ConfigError      (2)
    ├─ ModelNotSupported   (5)  FoldError · ExportError · EngineBuildError
    ├─ EnvironmentLacking  (6)  MissingLibrary · NoGpu · VersionMismatch
    └─ InternalError      (70)  a broken invariant of ours

The class says who must act, the code (``E204``) says what happened and stays the same for ever; ``docs/errors.md`` lists
every code with its cause and its remedy. A failed verdict is not an error: it is a value, and exit status 3.

Codes by hundred: 1 checkpoint · 2 weights · 3 graph and model · 4 ONNX · 5 engine · 6 samples and verification ·
7 configuration, files and artefacts · 8 environment · 9 internal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

__all__ = [
    "ArtifactError",
    "CheckpointError",
    "ConfigError",
    "EngineBuildError",
    "EnvironmentLacking",
    "ExportError",
    "ExporterError",
    "FoldError",
    "InputRefused",
    "InternalError",
    "LayoutError",
    "MissingLibrary",
    "ModelNotSupported",
    "NoGpu",
    "SampleError",
    "VersionMismatch",
    "printable",
]


_MAX_PROBLEM, _MAX_FACT = 600, 4000


class ExporterError(Exception):
    """Base of every error of this package.

    Args:
        code: stable code, listed in ``docs/errors.md``.
        problem: one full sentence without a final stop, at most about 80 columns.
        facts: label -> text, one fact per line: ``file``, ``at`` (a key path), ``found``, ``expected``, ...
        help: a command, an option or an edit that solves it; empty where there is none.
    """

    exit_status: ClassVar[int] = 70

    def __init__(self, code: str, problem: str, *, facts: Mapping[str, object] | None = None, help: str = "") -> None:  # noqa: A002 - the word on screen
        super().__init__(code, _cut(problem, _MAX_PROBLEM))
        self.code = code
        self.problem = _cut(problem, _MAX_PROBLEM)
        self.facts: dict[str, str] = {label: _cut(str(text), _MAX_FACT) for label, text in (facts or {}).items()}
        self.help = _cut(help, _MAX_FACT)

    def __str__(self) -> str:
        """Return the message as it is shown on a terminal, without colour."""
        rows = [*self.facts.items(), *([("help", self.help)] if self.help else [])]
        width = max((len(label) for label, _ in rows), default=0) + 1
        lines = [f"error[{self.code}] {printable(self.problem)}"]
        for label, text in rows:
            first, *more = printable(text, keep_newlines=True).split("\n")
            lines.append(f"  {label + ':':<{width}} {first}")
            lines += [f"  {'':<{width}} {line}" for line in more]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the same facts for ``--json``."""
        return {
            "code": self.code,
            "error": type(self).__name__,
            "exit_status": self.exit_status,
            "facts": self.facts,
            "help": self.help,
            "problem": self.problem,
        }


class InputRefused(ExporterError):
    """The input has to change: a file, a setting, a sample."""

    exit_status = 4


class CheckpointError(InputRefused):
    """The checkpoint cannot be read safely and completely."""


class LayoutError(InputRefused):
    """The weights asked for are not in the checkpoint, or are ambiguous, or do not fit."""


class SampleError(InputRefused):
    """The samples do not fit the model."""


class ArtifactError(InputRefused):
    """A file made by an earlier stage is missing, altered or not ours."""


class ConfigError(InputRefused):
    """A setting is unknown, misspelt or out of range; a matter of usage."""

    exit_status = 2


class ModelNotSupported(ExporterError):
    """The model does something that this tool does not do."""

    exit_status = 5


class FoldError(ModelNotSupported):
    """The graph cannot be folded as asked."""


class ExportError(ModelNotSupported):
    """The model cannot be traced or exported."""


class EngineBuildError(ModelNotSupported):
    """TensorRT refused the network or the settings."""


class EnvironmentLacking(ExporterError):
    """This machine lacks something that was required."""

    exit_status = 6


class MissingLibrary(EnvironmentLacking):
    """A library is not installed."""


class NoGpu(EnvironmentLacking):
    """No usable GPU or driver."""


class VersionMismatch(EnvironmentLacking):
    """A library is there in a version that cannot be used."""


class InternalError(ExporterError):
    """A broken invariant of ours; please report it."""

    exit_status = 70


def _cut(text: str, most: int) -> str:
    """Cut text that holds names of a length which somebody else chose."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def printable(text: str, *, keep_newlines: bool = False) -> str:
    """Escape control characters, so that a name read from a file cannot drive the terminal."""
    return "".join(c if c.isprintable() or (keep_newlines and c == "\n") else c.encode("unicode_escape").decode() for c in text)
