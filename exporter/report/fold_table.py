"""The table of every BatchNorm: folded into what, or kept for what reason."""

from __future__ import annotations

from typing import Any, Final

from exporter.artifacts import REMEDIES, Folded, Refusal, Report
from exporter.report import phrases

__all__ = ["DIRECTIONS", "fold_table"]

DIRECTIONS: Final = {"back": "folded back", "ahead": "folded ahead", "beside": "folded beside", "constant": "a constant"}
_ABSORBED: Final = "absorbed"
"""Direction of a fold -> what the table calls it."""

_MOST_NAMES: Final = 12


def fold_table(report: Report) -> dict[str, Any]:
    """Return what the page shows of the folds: all of them in the order of execution, the kept ones by reason, and what to filter by."""
    order: dict[str, int] = {}
    for place, node in enumerate(report.sketch.nodes if report.sketch is not None else ()):
        order.setdefault(node.module, place)
    every: list[Folded | Refusal] = [*report.refusals, *report.folded, *report.absorbed]
    every.sort(key=lambda item: order.get(item.batch_norm, len(order)))
    counts = {"all": len(every), "kept": len(report.refusals)}
    counts |= {name: sum(item.direction == name for item in report.folded) for name in DIRECTIONS}
    counts[_ABSORBED] = len(report.absorbed)
    words = {"all": "all", "kept": "kept", **DIRECTIONS, _ABSORBED: _ABSORBED}
    return {
        "every_fold": every,
        "kept": phrases.by_reason(report.refusals),
        "most_names": _MOST_NAMES,
        "remedies": REMEDIES,
        "directions": DIRECTIONS,
        "absorbed": report.absorbed,
        "fold_filters": [(kind, words[kind], count) for kind, count in counts.items() if count or kind == "all"],
    }
