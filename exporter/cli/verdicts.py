"""Verdicts on the screen, and the exit status that they mean."""

from __future__ import annotations

from exporter.artifacts import OnnxModel, Outcome, Verdict, worst
from exporter.cli.screen import Screen
from exporter.gates import require_measured
from exporter.report import render_verdict

__all__ = ["range_lines", "show_verdicts"]

EXIT_NOT_PASS = 3


def range_lines(model: OnnxModel) -> list[str]:
    """Return how a model that was written in float16 lies in its range; nothing for others."""
    from exporter.half_range import range_verdict

    return [] if model.ranges is None else render_verdict(range_verdict(model.ranges))


def show_verdicts(screen: Screen, verdicts: tuple[Verdict, ...]) -> int:
    """Print every verdict and return 0 or 3.

    Raises:
        EnvironmentLacking: a required check did not run.
    """
    for verdict in verdicts:
        screen.show(render_verdict(verdict))
    require_measured(verdicts)
    return 0 if worst(verdicts) is Outcome.PASS else EXIT_NOT_PASS
