"""``--explain``: draw what stands around the BatchNorms of a fold."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from exporter.cli.screen import Screen

if TYPE_CHECKING:
    from exporter.artifacts import FoldedOnnx, Graph

__all__ = ["explain_option", "show_explanations"]

Command = TypeVar("Command", bound=Callable[..., Any])


def explain_option(command: Command) -> Command:
    """Add ``--explain``: None where it is not given, an empty text where it is given without a pattern."""
    help_text = "Draw what stands around every BatchNorm that was kept, or around those with such names. Write it last, or with =."
    return click.option("--explain", is_flag=False, flag_value="", metavar="[PATTERN]", help=help_text)(command)


def show_explanations(screen: Screen, fold: Graph | FoldedOnnx, pattern: str | None) -> dict[str, Any]:
    """Draw the BatchNorms that fit ``pattern``, and return them as part of the command's result; nothing where it is None.

    Raises:
        ConfigError: no BatchNorm has such a name (E346).
    """
    if pattern is None:
        return {}
    from exporter.artifacts import to_json
    from exporter.graph.explaining import explain
    from exporter.report import render_explanations

    explanations = explain(fold.sketch, (*fold.folded, *fold.absorbed), fold.refusals, pattern)
    screen.show(render_explanations(explanations, width=screen.width, plain=screen.is_plain))
    return {"explanations": to_json(explanations)}
