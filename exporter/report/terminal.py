"""The screen: plain lines, verdicts in words, numbers with units.

No colour and no wrapping; the command line adds colour to the outcome words. Names that come from files are escaped.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from exporter.artifacts import (
    BATCH_NORM_SOURCES,
    BakeSummary,
    Cost,
    Folded,
    LatencyEvidence,
    MetricEvidence,
    Outcome,
    OutputParity,
    ParityEvidence,
    RangeEvidence,
    Refusal,
    Report,
    Verdict,
)
from exporter.errors import printable
from exporter.report import phrases, units

__all__ = ["render_bake", "render_fold", "render_terminal", "render_verdict"]

_MARKS: Final = {Outcome.PASS: "✓", Outcome.FAIL: "✗", Outcome.INCONCLUSIVE: "?", Outcome.NOT_RUN: "-"}
_WEIGHTY_REMARK: Final = "random inputs only"
"""The remark on a parity PASS that even the shortest screen repeats."""
_INDENT: Final = " " * 8
_MOST_KEPT: Final = 8
"""Kept BatchNorms that have a line each; more of them are told by reason."""

_MOST_NAMES: Final = 3
_LABEL_WIDTH: Final = 7
"""Of ``latency``, the longest of the usual first words."""


def render_terminal(report: Report, folder: Path | None = None) -> list[str]:
    """Return the screen of ``exporter run``: a row per stage, a row per group of verdicts, the overall outcome.

    Args:
        report: what the run found out.
        folder: the run folder, named in the last line; None leaves it out.
    """
    rows: list[tuple[str, str, str, str, tuple[str, ...]]] = []
    for stage in report.stages:
        is_made = stage.state == "made"
        state = units.seconds_text(stage.seconds) if is_made else stage.state
        details = _bake_details(report.bake) if stage.stage == "bake" else ()
        rows.append((stage.stage, "-" if stage.state == "NOT_RUN" else "✓", state, stage.summary, details))
    told = tuple(stage.summary for stage in report.stages if stage.state == "NOT_RUN" and stage.summary)
    for group in _groups(report.verdicts):
        first = group[0]
        if first.outcome is Outcome.NOT_RUN and not first.required and first.reason.startswith(told):
            continue  # the row of the stage has said so; the last line counts it
        text, details = _headline(group)
        rows.append((first.check, _MARKS[first.outcome], first.outcome.value, text, details))
    label_width = max([_LABEL_WIDTH, *(len(row[0]) for row in rows)])
    state_width = max([0, *(len(row[2]) for row in rows)])
    lines = []
    for label, mark, state, text, details in rows:
        lines.append(f"{label:<{label_width}} {mark} {state:<{state_width}}   {text}".rstrip())
        lines += [_INDENT + detail for detail in details]
    closing = phrases.outcome_sentence(report).removesuffix(".")
    where = f"   report: {folder / 'report.html'}" if folder is not None else ""
    lines.append(f"{report.outcome.value:<{label_width}} {closing}{where}")
    return [printable(line) for line in lines]


def _bake_details(bake: BakeSummary | None) -> tuple[str, ...]:
    said = (f"BatchNorm statistics {line}" if index == 0 else line for index, line in enumerate(phrases.recalibration_lines(bake)))
    return (*said, *(f"warning: {warning}" for warning in phrases.bake_warnings(bake)))


def render_verdict(verdict: Verdict) -> list[str]:
    """Return one verdict with all its numbers: a line per output of a parity check, and what to do where it does not pass."""
    evidence = verdict.evidence
    head = f"{verdict.check:<{_LABEL_WIDTH}} {_MARKS[verdict.outcome]} {verdict.outcome.value:<4}   {verdict.subject}: "
    if isinstance(evidence, RangeEvidence):
        lines = [head + verdict.reason, *(_INDENT + remark for remark in evidence.remarks)]
    elif verdict.outcome is Outcome.NOT_RUN or evidence is None:
        lines = [head + verdict.reason]
    elif isinstance(evidence, ParityEvidence):
        lines = _parity_lines(head, verdict, evidence)
    elif isinstance(evidence, LatencyEvidence):
        lines = [head.removesuffix(f"{verdict.subject}: ") + _latency_text(evidence, verdict.subject)]
        lines += [_INDENT + line for line in (*_latency_details(verdict, evidence), *evidence.remarks)]
    else:
        lines = [head + _metric_text(evidence)]
        if verdict.outcome is not Outcome.PASS:
            lines.append(_INDENT + verdict.reason)
    return [printable(line).rstrip() for line in lines]


def render_bake(summary: BakeSummary, path: Path) -> list[str]:
    """Return what baking did: what was chosen, what was written to ``path``, what stayed behind, how far the average is from raw."""
    choice, _, name = summary.choice.partition(":")
    facts = [f"{summary.num_averaged} averaged" if choice != "raw" else units.plural(summary.num_averaged, "tensor")]
    if summary.num_copied:
        facts.append(f"{summary.num_copied} copied")
    facts += [summary.cast.replace("->", "→"), units.bytes_text(summary.size_bytes)]
    lead = " " * (len(choice) + 3)
    lines = [f"{choice} → {path}   " + " · ".join(facts)]
    if summary.candidate is not None:
        lines.append(f"{lead}average: {name or summary.candidate.name} · {_average_health(summary)}")
    if summary.left_behind:
        left = ", ".join(f"{what} {units.bytes_text(size)}" for what, size in sorted(summary.left_behind.items(), key=lambda item: -item[1]))
        lines.append(f"{lead}left behind: {left}")
    if choice == "ema":
        lines.append(f"{lead}distance from raw: {_distance(summary)}")
    lines += [f"{lead}{remark}" for remark in summary.remarks]
    lines += [f"{lead}{'  ' if index else ''}{line}" for index, line in enumerate(phrases.selection_lines(summary))]
    if summary.batch_norm is not None and summary.batch_norm.source != "own":
        lines.append(f"{lead}BatchNorm statistics: {BATCH_NORM_SOURCES[summary.batch_norm.source]}")
        lines += [f"{lead}  {line}" for line in phrases.recalibration_lines(summary)]
        lines += [f"{lead}warning: {warning}" for warning in phrases.bake_warnings(summary)]
    return [printable(line) for line in lines]


def render_fold(
    folded: Sequence[Folded],
    refusals: Sequence[Refusal],
    num_batch_norms: int,
    ops_before: int,
    ops_after: int,
    *,
    costs: tuple[Cost, Cost] | None = None,
    absorbed: Sequence[Folded] = (),
) -> list[str]:
    """Return what folding did: counts by pattern, what else was absorbed, what a run costs, then what was kept.

    Each of those stands with its reason, or where they are many by reason.

    Args:
        costs: of the graph before and after; None where nobody knows.
        absorbed: products and sums that stood alone.
    """
    parts = [f"folded {len(folded)} of {num_batch_norms} BatchNorm"]
    if folded:
        parts.append(_patterns(folded))
    parts.append(f"ops {ops_before} → {ops_after}")
    lines = ["   ".join(parts)]
    if absorbed:
        lines.append(f"absorbed {len(absorbed)} products and sums with constants   {_patterns(absorbed)}")
    if told := phrases.cost_text(costs or ()):
        lines.append(f"cost   {told}")
    lines += _kept_each(refusals) if len(refusals) <= _MOST_KEPT else _kept_by_reason(refusals)
    return [printable(line) for line in lines]


def _patterns(folds: Sequence[Folded]) -> str:
    counts = collections.Counter(item.pattern for item in folds)
    return " · ".join(f"{pattern} {count}" for pattern, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _kept_each(refusals: Sequence[Refusal]) -> list[str]:
    width = max((len(item.batch_norm) for item in refusals), default=0)
    lines = []
    for index, item in enumerate(refusals):
        label = f"kept   {len(refusals)}" if index == 0 else f"{'':7}{'':<{len(str(len(refusals)))}}"
        culprits = f" ({', '.join(item.culprits)})" if item.culprits else ""
        detail = f"; {item.detail}" if item.detail else ""
        lines.append(f"{label}   {item.batch_norm:<{width}}   {item.reason.value}{culprits}{detail}")
    return lines


def _kept_by_reason(refusals: Sequence[Refusal]) -> list[str]:
    """Return two lines for each reason, the most frequent first: how many, and the first of them."""
    groups = phrases.by_reason(refusals)
    lead = " " * (len(f"kept   {len(refusals)}") + 3)
    width = max(len(str(len(items))) for _, items in groups)
    lines: list[str] = []
    for reason, items in groups:
        lines.append(f"{lead if lines else f'kept   {len(refusals)}   '}{len(items):>{width}} {reason.value}")
        lines.append(f"{lead}{'':{width}} {phrases.names_of(items, _MOST_NAMES)}")
    return [*lines, f"{lead}--explain shows each of them, and what stands in its way"]


def _groups(verdicts: Iterable[Verdict]) -> list[list[Verdict]]:
    """Return verdicts that share one row: parity and metric that pass, and NOT_RUN for one reason."""
    groups: dict[tuple[object, ...], list[Verdict]] = {}
    for index, verdict in enumerate(verdicts):
        joins = verdict.outcome is Outcome.PASS and verdict.check != "latency"
        key: tuple[object, ...] = (verdict.check, verdict.outcome, verdict.required, "") if joins else (verdict.check, index)
        if verdict.outcome is Outcome.NOT_RUN:
            key = (verdict.check, verdict.outcome, verdict.required, verdict.reason)
        groups.setdefault(key, []).append(verdict)
    order = list(dict.fromkeys(group[0].check for group in groups.values()))
    return sorted(groups.values(), key=lambda group: order.index(group[0].check))


def _headline(group: list[Verdict]) -> tuple[str, tuple[str, ...]]:
    """Return the text of a row of ``exporter run`` and the indented lines below it."""
    first, evidence = group[0], group[0].evidence
    subjects = ", ".join(verdict.subject for verdict in group)
    if isinstance(evidence, RangeEvidence):
        return f"{subjects}: {first.reason}", evidence.remarks
    if first.outcome is Outcome.NOT_RUN or evidence is None:
        return f"{subjects}: {first.reason}", ()
    if isinstance(evidence, LatencyEvidence):
        return _latency_text(evidence, first.subject), _latency_details(first, evidence)
    if isinstance(evidence, MetricEvidence):
        values = _metric_text(evidence)
        return (f"{subjects}   {values}", ()) if first.outcome is Outcome.PASS else (f"{first.subject}: {first.reason}", (values,))
    if first.outcome is Outcome.PASS:
        members = [verdict.evidence for verdict in group if isinstance(verdict.evidence, ParityEvidence)]
        outputs = [output for output in map(phrases.worst_output, members) if output]
        errors = ", ".join(units.error(output.relative_l2) for output in outputs)
        allowed = ", ".join(dict.fromkeys(units.error(output.allowed) for output in outputs)) or units.error(math.nan)
        fed = f"{units.plural(evidence.num_samples, 'sample')} in {units.plural(len(evidence.feeds), 'feed')}"
        remarks = dict.fromkeys(remark for member in members for remark in member.remarks if remark.startswith(_WEIGHTY_REMARK))
        return f"{subjects}   rel L2 {errors} (allowed {allowed})   {fed}", tuple(remarks)
    lines = _parity_lines("", first, evidence)
    return f"{first.subject}: {lines[0].strip()}", tuple(line.strip() for line in lines[1:])


def _parity_lines(head: str, verdict: Verdict, evidence: ParityEvidence) -> list[str]:
    if not evidence.outputs:
        return [head + verdict.reason]
    lines: list[str] = []
    name_width = max(len(output.output) for output in evidence.outputs)
    for output in evidence.outputs:
        lines.append((_INDENT if lines else head) + _output_text(output, name_width))
        if output.outcome is Outcome.PASS:
            lines.append(f"{_INDENT}passes from rtol {units.error(output.smallest_rtol)} on")
        else:
            lines.append(f"{_INDENT}{output.reason}; {_would_pass(output)}")
    if verdict.outcome is not Outcome.PASS and evidence.localisation:
        lines += [_INDENT + line.strip() for line in evidence.localisation.splitlines() if line.strip()]
    return [*lines, *(_INDENT + remark for remark in _remarks(evidence))]


def _output_text(output: OutputParity, name_width: int) -> str:
    text = (
        f"{output.output:<{name_width}}  rel L2 {units.error(output.relative_l2)} (own error {units.error(output.own_error)}, "
        f"allowed {units.error(output.allowed)})  max |Δ| {units.error(output.max_abs)}  SQNR {units.decibels(output.sqnr_db)}"
    )
    if output.argmax_total is not None:
        text += f"  argmax {output.argmax_equal}/{output.argmax_total}"
        if output.argmax_ties:
            text += f" ({units.plural(output.argmax_ties, 'tie')})"
    if output.num_nonfinite:
        text += f"  {output.num_nonfinite} not finite"
    return text


def _would_pass(output: OutputParity) -> str:
    if math.isfinite(output.smallest_rtol):
        return f"it would pass from rtol {units.error(output.smallest_rtol)} on"
    return "no tolerance would pass it"


def _remarks(evidence: ParityEvidence) -> tuple[str, ...]:
    extra = (f"extra outputs, not compared: {', '.join(evidence.extra_outputs)}",) if evidence.extra_outputs else ()
    return (*evidence.remarks, *extra)


def _latency_text(evidence: LatencyEvidence, subject: str) -> str:
    compared = f"x faster than {evidence.reference}" if evidence.speedup >= 1 else f"x the speed of {evidence.reference}"
    times = "  ".join(f"{name} {units.milliseconds(value)}" for name, value in evidence.percentiles_ms.items() if name != "p90")
    threads = f", {units.plural(evidence.threads, 'thread')}" if evidence.threads is not None else ""
    return (
        f"{subject} {evidence.speedup:.2f} {compared}   {units.confidence(evidence.confidence)} interval {phrases.interval(evidence)}   "
        f"{times}   ({evidence.device}, batch {evidence.batch}{threads})"
    )


def _latency_details(verdict: Verdict, evidence: LatencyEvidence) -> tuple[str, ...]:
    relation = {Outcome.FAIL: "excludes it", Outcome.INCONCLUSIVE: "holds the limit: more rounds or a quieter machine"}.get(verdict.outcome)
    return (f"required: {evidence.required}; the interval {phrases.interval(evidence)} {relation}",) if relation else ()


def _metric_text(evidence: MetricEvidence) -> str:
    values = "  ".join(f"{name} {units.metric_value(evidence.metric, value)}" for name, value in evidence.values.items())
    return f"{evidence.metric}: {values}   ({units.plural(evidence.num_samples, 'sample')})"


def _average_health(summary: BakeSummary) -> str:
    candidate = summary.candidate
    if candidate is None:
        return "unknown"
    facts: list[str] = [candidate.state]
    if candidate.updates is not None:
        facts.append(units.plural(candidate.updates, "update"))
    if candidate.decay is not None:
        facts.append(f"decay {candidate.decay:g}")
    if candidate.initial_share is not None:
        facts.append(f"initial weights {units.percent(candidate.initial_share)}")
    if candidate.window is not None:
        facts.append(f"looks back {units.plural(round(candidate.window), 'update')}")
    return " · ".join(facts)


def _distance(summary: BakeSummary) -> str:
    if summary.drift_total is None:
        return (
            'not measured ([weights] drift = "always" measures it)'
            if "raw weights" in summary.left_behind
            else "unknown, the file has no raw weights"
        )
    text = f"{units.error(summary.drift_total)} over all tensors"
    if summary.drift:
        largest = max(summary.drift, key=lambda drift: drift.relative)
        text += f", largest {units.error(largest.relative)} in {largest.name}"
    return text
