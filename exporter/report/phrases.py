"""What a verdict says in a few words; shared by the screen, the page, the summary and JUnit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Final

from exporter.artifacts import (
    BakeSummary,
    Cost,
    LatencyEvidence,
    MetricEvidence,
    Outcome,
    OutputParity,
    ParityEvidence,
    RangeEvidence,
    Refusal,
    RefusalReason,
    Report,
    Verdict,
)
from exporter.report import units

__all__ = [
    "advice",
    "bake_warnings",
    "blocks",
    "by_check",
    "by_reason",
    "cost_text",
    "interval",
    "kept_lines",
    "key_number",
    "limit",
    "names_of",
    "outcome_sentence",
    "recalibration_lines",
    "required_speedup",
    "selection_lines",
    "title",
    "worst_output",
]

_MOST_NAMES: Final = 6
_SPEEDUP: Final = re.compile(r">=\s*(\d+(?:\.\d+)?)")
_BLOCKED: Final = {Outcome.FAIL: "failed", Outcome.INCONCLUSIVE: "could not be decided", Outcome.NOT_RUN: "did not run though required"}
_SLOWDOWN: Final = re.compile(r"(\d+(?:\.\d+)?)\s*%\s*slower")


def bake_warnings(bake: BakeSummary | None) -> tuple[str, ...]:
    """Return what to know before the weights are trusted; empty where nothing is known against them."""
    statistics = bake.batch_norm if bake is not None else None
    return (statistics.warning,) if statistics is not None and statistics.warning else ()


def selection_lines(bake: BakeSummary | None) -> tuple[str, ...]:
    """Return by what the weights were chosen, then a line for each copy with its value; empty where they were named."""
    selection = bake.selection if bake is not None else None
    if selection is None:
        return ()
    width = max(map(len, (*selection.values, *selection.left_out)))
    lines = [f"selected by {selection.metric} on {selection.num_samples} samples, which it was chosen on: it is no measure for others"]
    for name, value in selection.values.items():
        lines.append(f"{name:<{width}}   {value:.6g}{'   chosen' if name == selection.chosen else ''}")
    return (*lines, *(f"{name:<{width}}   not measured: {reason}" for name, reason in selection.left_out.items()))


def recalibration_lines(bake: BakeSummary | None) -> tuple[str, ...]:
    """Return what estimating BatchNorm's statistics anew did: on what, what the network says now, what moved most; empty where it was not done."""
    result = bake.batch_norm.recalibration if bake is not None and bake.batch_norm is not None else None
    if result is None:
        return ()
    lines = [
        f"estimated on {result.num_samples} samples in batches of at most {result.batch}, {result.values_per_channel} or more values per channel"
    ]
    if result.metric_before is not None and result.metric_after is not None:
        before, after = (units.metric_value(result.metric, value) for value in (result.metric_before, result.metric_after))
        lines.append(f"{result.metric} before {before}, after {after}")
    if result.output_drift:
        moved = ", ".join(f"{name} {units.error(value)}" for name, value in result.output_drift.items())
        lines.append(f"outputs moved, relative to before: {moved}   ({units.plural(result.num_compared, 'sample')})")
    if result.layers:
        mean, var = (max(result.layers, key=key) for key in (lambda change: change.mean_shift, lambda change: change.variance_change))
        lines.append(
            f"largest change: means of {mean.layer} by {units.error(mean.mean_shift)} standard deviations, "
            f"variances of {var.layer} by {units.error(var.variance_change)} of themselves"
        )
    return tuple(lines)


def by_reason(refusals: Sequence[Refusal]) -> list[tuple[RefusalReason, list[Refusal]]]:
    """Return what was kept for each reason, the most frequent reason first."""
    groups: dict[RefusalReason, list[Refusal]] = {}
    for item in refusals:
        groups.setdefault(item.reason, []).append(item)
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def names_of(refusals: Sequence[Refusal], most: int) -> str:
    """Return the names of the first of them: ``a, b, c … and 9 more``."""
    more = f" … and {len(refusals) - most} more" if len(refusals) > most else ""
    return ", ".join(item.batch_norm for item in refusals[:most]) + more


def kept_lines(refusals: Sequence[Refusal]) -> tuple[str, ...]:
    """Return a line for each reason for which BatchNorms were kept: how many, why, the names of the first."""
    return tuple(f"{len(items)} {reason.value}: {names_of(items, _MOST_NAMES)}" for reason, items in by_reason(refusals))


def cost_text(costs: Sequence[Cost]) -> str:
    """Return what a run costs before and after the fold; empty where nobody knows."""
    if len(costs) != 2:
        return ""
    before, after = costs
    flops = f"{units.count_text(before.flops)} → {units.count_text(after.flops)} FLOPs"
    return f"{flops} · {units.bytes_text(before.bytes)} → {units.bytes_text(after.bytes)} read and written, each run"


def title(verdict: Verdict) -> str:
    """Return ``parity of onnx``."""
    return f"{verdict.check} of {verdict.subject}"


def blocks(verdict: Verdict) -> bool:
    """Return whether the verdict keeps the run from passing."""
    return verdict.outcome is Outcome.FAIL or (verdict.required and verdict.outcome is not Outcome.PASS)


def by_check(verdicts: tuple[Verdict, ...]) -> list[Verdict]:
    """Return the verdicts with those of one check together, checks in order of their first appearance."""
    order = list(dict.fromkeys(verdict.check for verdict in verdicts))
    return sorted(verdicts, key=lambda verdict: order.index(verdict.check))


def worst_output(evidence: ParityEvidence) -> OutputParity | None:
    """Return the output nearest to its limit or furthest beyond it; None where there are no outputs."""

    def badness(output: OutputParity) -> tuple[bool, float]:
        used = output.relative_l2 / output.allowed if output.allowed > 0 else output.relative_l2
        return output.outcome is Outcome.FAIL, math.inf if math.isnan(used) else max(used, output.max_violation)

    return max(evidence.outputs, key=badness, default=None)


def key_number(verdict: Verdict) -> str:
    """Return the one number that decides the verdict; empty where there is none."""
    evidence = verdict.evidence
    if isinstance(evidence, ParityEvidence):
        output = worst_output(evidence)
        return f"rel L2 {units.error(output.relative_l2)}" if output else ""
    if isinstance(evidence, LatencyEvidence):
        return f"{units.ratio(evidence.speedup)} ({interval(evidence)})"
    if isinstance(evidence, MetricEvidence):
        value = evidence.values.get(verdict.subject)
        return "" if value is None else f"{evidence.metric} {units.metric_value(evidence.metric, value)}"
    if isinstance(evidence, RangeEvidence) and verdict.outcome is not Outcome.NOT_RUN:
        return f"largest {evidence.largest:.3g}"
    return ""


def limit(verdict: Verdict) -> str:
    """Return what the key number is held against; empty where there is nothing."""
    evidence = verdict.evidence
    if isinstance(evidence, ParityEvidence):
        output = worst_output(evidence)
        return f"at most {units.error(output.allowed)}" if output else ""
    if isinstance(evidence, LatencyEvidence):
        return evidence.required
    if isinstance(evidence, MetricEvidence):
        if evidence.allowed_drop == 0:
            return f"no lower than {evidence.reference}"
        return f"at most {units.metric_value(evidence.metric, evidence.allowed_drop)} below {evidence.reference}"
    if isinstance(evidence, RangeEvidence):
        return f"at most {evidence.limit:g}"
    return ""


def interval(evidence: LatencyEvidence) -> str:
    """Return ``1.79 to 1.88``."""
    return f"{evidence.speedup_low:.2f} to {evidence.speedup_high:.2f}"


def required_speedup(required: str) -> float | None:
    """Return the speed-up that ``LatencyEvidence.required`` asks for; None where the text gives no number.

    ``speedup >= 2.00`` is 2; ``no more than 2 % slower`` is 1 / 1.02.
    """
    if found := _SPEEDUP.search(required):
        return float(found[1])
    if found := _SLOWDOWN.search(required):
        return 1 / (1 + float(found[1]) / 100)
    return None


def outcome_sentence(report: Report) -> str:
    """Return one sentence under the overall verdict."""
    bad = [verdict for verdict in report.verdicts if blocks(verdict)]
    passed = sum(verdict.outcome is Outcome.PASS for verdict in report.verdicts)
    idle = sum(verdict.outcome is Outcome.NOT_RUN and not verdict.required for verdict in report.verdicts)
    if not report.verdicts:
        return "No check was made."
    if not bad:
        rest = f"; {idle} not run and not required" if idle else ""
        return f"{units.plural(passed, 'check')} passed{rest}."
    parts = []
    for outcome, words in _BLOCKED.items():
        group = [title(verdict) for verdict in bad if verdict.outcome is outcome]
        if group:
            parts.append(f"{len(group)} of {units.plural(len(report.verdicts), 'check')} {words}: {', '.join(group)}")
    return "; ".join(parts) + "."


def advice(verdict: Verdict) -> tuple[str, ...]:
    """Return what happened and what to do next, most useful first; empty for a verdict that needs nothing."""
    if not blocks(verdict):
        return ()
    evidence = verdict.evidence
    if verdict.outcome is Outcome.NOT_RUN or evidence is None:
        return (verdict.reason,)
    lines: list[str] = [verdict.reason] if verdict.reason else []
    if isinstance(evidence, ParityEvidence):
        lines += [line for line in evidence.localisation.splitlines() if line.strip()]
        lines += [f"{output.output}: it would pass from rtol {units.error(output.smallest_rtol)} on" for output in _failed(evidence.outputs)]
    elif isinstance(evidence, LatencyEvidence):
        lines.append(f"measured {units.ratio(evidence.speedup)}, interval {interval(evidence)}; required: {evidence.required}")
        if verdict.outcome is Outcome.INCONCLUSIVE:
            lines.append("the interval holds the limit: race on a quieter machine, or for more rounds ([latency] rounds)")
    elif isinstance(evidence, MetricEvidence):
        values = ", ".join(f"{name} {units.metric_value(evidence.metric, value)}" for name, value in evidence.values.items())
        lines.append(f"{evidence.metric}: {values}; required: {limit(verdict)}")
    return tuple(dict.fromkeys(lines))


def _failed(outputs: Iterable[OutputParity]) -> list[OutputParity]:
    return [output for output in outputs if output.outcome is not Outcome.PASS and math.isfinite(output.smallest_rtol)]
