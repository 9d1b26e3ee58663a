"""What both ways of ``fuse-bn`` show of a fold, and return of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.cli.explaining import show_explanations
from exporter.cli.screen import Screen

if TYPE_CHECKING:
    from exporter.artifacts import FoldedOnnx, Graph

__all__ = ["show_fold"]


def show_fold(screen: Screen, fold: Graph | FoldedOnnx, pattern: str | None) -> dict[str, Any]:
    """Show what was folded and what was kept, draw what ``--explain`` asks for, and return it as part of the command's result.

    Raises:
        ConfigError: no BatchNorm has a name that fits ``pattern`` (E346).
    """
    from exporter.artifacts import to_json
    from exporter.report import render_fold

    costs = (fold.cost_before, fold.cost_after)
    screen.show(render_fold(fold.folded, fold.refusals, fold.num_batch_norms, fold.ops_before, fold.ops_after, costs=costs, absorbed=fold.absorbed))
    return {
        "folded": to_json(fold.folded),
        "refusals": to_json(fold.refusals),
        "absorbed": to_json(fold.absorbed),
        "num_batch_norms": fold.num_batch_norms,
        "ops_before": fold.ops_before,
        "ops_after": fold.ops_after,
        "cost_before": to_json(fold.cost_before),
        "cost_after": to_json(fold.cost_after),
        **show_explanations(screen, fold, pattern),
    }
