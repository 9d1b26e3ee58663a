"""Verdicts on the screen, and the exit status that they mean."""

from __future__ import annotations

from exporter.artifacts import Outcome, Verdict, worst
from exporter.cli.screen import Screen
from exporter.gates import require_measured
from exporter.report import render_verdict

__all__ = ["show_verdicts"]

EXIT_NOT_PASS = 3


def show_verdicts(screen: Screen, verdicts: tuple[Verdict, ...]) -> int:
    """Print every verdict and return 0 or 3.

    Raises:
        EnvironmentLacking: a required check did not run.
    """
    for verdict in verdicts:
        screen.show(render_verdict(verdict))
    require_measured(verdicts)
    return 0 if worst(verdicts) is Outcome.PASS else EXIT_NOT_PASS
