"""``summary.md``: the report for a CI job summary; verdict first, one table, what failed and what to do."""

from __future__ import annotations

import re
from typing import Final

from exporter.artifacts import Outcome, Report, Verdict
from exporter.errors import printable
from exporter.report import phrases

__all__ = ["summary_from_report"]

_MARKS: Final = {Outcome.PASS: "✅", Outcome.FAIL: "❌", Outcome.INCONCLUSIVE: "❔", Outcome.NOT_RUN: "⚪"}
_SPECIAL: Final = re.compile(r"[\\`*\[\]<|&~#!$]|^>|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")
_ENTITIES: Final = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_SHOWN_LINEAGE: Final = ("checkpoint", "weights", "ema", "folded")


def summary_from_report(report: Report) -> str:
    """Return the summary as GitHub-flavoured Markdown, ending with a newline."""
    lines = [
        f"## {_MARKS[report.outcome]} {report.outcome.value}",
        "",
        _escape(phrases.outcome_sentence(report)),
        "",
        "| | check | candidate | measured | required |",
        "|---|---|---|---|---|",
    ]
    lines += [_row(verdict) for verdict in phrases.by_check(report.verdicts)]
    for verdict in report.verdicts:
        advice = phrases.advice(verdict)
        if advice:
            lines += ["", f"**{_escape(phrases.title(verdict))}: {verdict.outcome.value}**", ""]
            lines += [f"- {_escape(line.strip())}" for line in advice]
    if told := phrases.kept_lines(report.refusals):
        lines += ["", *(f"- BatchNorm kept: {_escape(line)}" for line in told)]
    if told := phrases.selection_lines(report.bake):
        lines += ["", "**Choice of the weights**", "", *(f"- {_escape(line)}" for line in told)]
    if told := phrases.recalibration_lines(report.bake):
        lines += ["", "**BatchNorm statistics**", "", *(f"- {_escape(line)}" for line in told)]
    lines += [line for warning in phrases.bake_warnings(report.bake) for line in ("", f"**Warning:** {_escape(warning)}")]
    lineage = [f"{name}: {text}" for name in _SHOWN_LINEAGE if (text := report.lineage.get(name))]
    footer = " · ".join([*lineage, f"run {report.run}"])
    lines += ["", f"<sub>{_escape(footer)}</sub>"]
    return "\n".join(lines) + "\n"


def _row(verdict: Verdict) -> str:
    outcome = verdict.outcome
    measured = phrases.key_number(verdict) if outcome is not Outcome.NOT_RUN else verdict.reason
    required = phrases.limit(verdict) or ("required" if verdict.required else "not required")
    cells = [f"{_MARKS[outcome]} {outcome.value}", *(_escape(text) for text in (verdict.check, verdict.subject, measured, required))]
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """Return ``text`` so that Markdown shows it as it is, on one line."""
    return _SPECIAL.sub(lambda found: _ENTITIES.get(found[0], "\\" + found[0]), printable(text))
