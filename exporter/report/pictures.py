"""The pictures of the report: what each shows, and how it is drawn."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from exporter.artifacts import BakeSummary, LatencyEvidence, Outcome, OutputParity, TensorDrift
from exporter.report import phrases, units
from exporter.report.picture import ACCENT, FAIL, GRID, INK, REFERENCE, Picture, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["drift_picture", "error_picture", "latency_picture", "rounds_picture", "speedup_picture"]

_MAX_BARS: Final = 24
_NUM_BINS: Final = 48
_WIDE_RANGE: Final = 30.0
"""Largest over smallest value from which an axis is logarithmic."""
_DRAWABLE: Final = 1e30
"""Bars end here; beyond it an axis overflows. The label tells the true value."""


def drift_picture(summary: BakeSummary) -> Picture | None:
    """Draw the distance of averaged from raw weights per tensor: the largest, in the order of the model; None without drift."""
    known = [drift for drift in summary.drift if math.isfinite(drift.relative)]
    if not known:
        return None
    chosen = set(sorted(range(len(known)), key=lambda index: (-known[index].relative, index))[:_MAX_BARS])
    shown = [drift for index, drift in enumerate(known) if index in chosen]
    largest = max(known, key=lambda drift: drift.relative)
    part = f"the {len(shown)} largest of {len(known)} tensors" if len(shown) < len(known) else units.plural(len(known), "tensor")
    return draw(
        lambda axes: _paint_drift(axes, shown),
        name="drift",
        title="Distance of the averaged weights from the raw weights, per tensor",
        description=f"{part}, in the order of the model; the largest distance is {units.error(largest.relative)} in {largest.name}",
        keys=(("candidate", f"‖ema - raw‖ / ‖raw‖, {part}"),),
        width_pt=420,
        height_pt=40 + 13.5 * len(shown),
    )


def error_picture(candidate: str, output: OutputParity, edges: Sequence[float], *, name: str) -> Picture | None:
    """Draw how large the errors of one output are, against what the unfused model itself makes and what is allowed."""
    if not output.histogram or len(output.histogram) != len(edges) - 1 or not sum(output.histogram):
        return None
    exact = output.histogram[0] / sum(output.histogram)  # the lowest bin holds what has no logarithm
    return draw(
        lambda axes: _paint_errors(axes, output, edges),
        name=name,
        title=f"Errors of {candidate}, output {output.output}",
        description=(
            f"share of elements by their error over the RMS of the output, log scale; relative L2 error {units.error(output.relative_l2)}, "
            f"own error of the unfused model {units.error(output.own_error)}, allowed {units.error(output.allowed)}"
        ),
        keys=(
            ("candidate", "elements"),
            ("measured", f"rel L2 {units.error(output.relative_l2)}"),
            ("own", f"own error {units.error(output.own_error)}"),
            ("required", f"allowed {units.error(output.allowed)}"),
            *((("note", f"{units.percent(exact)} exact or nearly so, not drawn"),) if exact else ()),
        ),
    )


def latency_picture(evidence: LatencyEvidence, *, name: str) -> Picture | None:
    """Draw the distributions of the raw samples of candidate and reference with their medians; None without samples."""
    if not evidence.samples_ms or not evidence.reference_samples_ms:
        return None
    medians = (
        evidence.percentiles_ms.get("p50", statistics.median(evidence.samples_ms)),
        evidence.reference_percentiles_ms.get("p50", statistics.median(evidence.reference_samples_ms)),
    )
    limit_ms, beyond = _shown_range(evidence)
    remark = f"; {units.plural(beyond, 'sample')} beyond the right edge, up to {units.milliseconds(_largest(evidence))}" if beyond else ""
    return draw(
        lambda axes: _paint_latency(axes, evidence, medians, limit_ms),
        name=name,
        title=f"Latency of {evidence.candidate} and {evidence.reference}",
        description=f"raw samples, batch {evidence.batch}; medians {units.milliseconds(medians[0])} and {units.milliseconds(medians[1])}{remark}",
        keys=(
            ("candidate", f"{evidence.candidate}, median {units.milliseconds(medians[0])}"),
            ("reference", f"{evidence.reference}, median {units.milliseconds(medians[1])}"),
            *((("note", remark.removeprefix("; ")),) if remark else ()),
        ),
    )


def rounds_picture(evidence: LatencyEvidence, *, name: str) -> Picture | None:
    """Draw the speed-up of every round with the interval of the whole race; None without rounds."""
    if not evidence.round_log_ratios:
        return None
    required = phrases.required_speedup(evidence.required)
    keys = [("candidate", "one round"), ("band", f"{units.confidence(evidence.confidence)} interval {phrases.interval(evidence)}")]
    if required is not None:
        keys.append(("required", f"required {required:.2f} x"))
    return draw(
        lambda axes: _paint_rounds(axes, evidence, required),
        name=name,
        title=f"Speed-up of {evidence.candidate} over {evidence.reference}, round by round",
        description=(
            f"{units.plural(evidence.rounds, 'round')}, {units.ratio(evidence.speedup)} with the interval {phrases.interval(evidence)}; "
            f"required: {evidence.required}"
        ),
        keys=tuple(keys),
    )


def speedup_picture(races: Sequence[tuple[LatencyEvidence, Outcome]]) -> Picture | None:
    """Draw the interval of every candidate's speed-up against the required line; None without races."""
    if not races:
        return None
    facts = "; ".join(f"{race.candidate} {units.ratio(race.speedup)}, {phrases.interval(race)}, {outcome.value}" for race, outcome in races)
    required = phrases.required_speedup(races[0][0].required)
    keys = [("interval", f"{units.confidence(races[0][0].confidence)} interval of the speed-up"), ("equal", "as fast as the reference")]
    if required is not None:
        keys.append(("required", f"required {required:.2f} x"))
    return draw(
        lambda axes: _paint_speedups(axes, races, required),
        name="speedup",
        title=f"Speed-up over {races[0][0].reference}",
        description=facts,
        keys=tuple(keys),
        width_pt=420,
        height_pt=44 + 25 * len(races),
    )


def _paint_drift(axes: Axes, shown: Sequence[TensorDrift]) -> None:
    values = [min(drift.relative, _DRAWABLE) if drift.relative > 1 / _DRAWABLE else 0.0 for drift in shown]
    positive = [value for value in values if value > 0]
    is_log = bool(positive) and max(positive) / min(positive) > _WIDE_RANGE
    floor = 10 ** math.floor(math.log10(min(positive))) if is_log else 0.0
    places = np.arange(len(shown))
    axes.barh(places, [max(value, floor) - floor for value in values], left=floor, height=0.64, color=ACCENT)
    if is_log:
        axes.set_xscale("log")
    right = max(positive, default=1.0) * (2.2 if is_log else 1.12)
    axes.set_xlim(floor, right)
    for place, value, drift in zip(places, values, shown, strict=True):
        end = (max(value, floor), place)
        axes.annotate(f"{drift.relative:.2g}", end, xytext=(4, 0), textcoords="offset points", va="center_baseline", fontsize=8, color=INK)
    axes.set_yticks(places, labels=[_label(drift.name) for drift in shown])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_minor_formatter(NullFormatter())
    if is_log:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _paint_errors(axes: Axes, output: OutputParity, edges: Sequence[float]) -> None:
    counts = np.asarray(output.histogram, dtype=float)
    bounds = _finite_edges(edges)
    centres, widths = (bounds[1:] + bounds[:-1]) / 2, np.diff(bounds)
    share = 100 * counts / counts.sum()
    share[0] = 0
    axes.bar(centres, share, width=0.92 * widths, color=ACCENT, alpha=0.75, linewidth=0)
    marks = [(output.relative_l2, INK, "solid"), (output.own_error, REFERENCE, (0, (2, 1.5))), (output.allowed, FAIL, "solid")]
    found = [math.log10(value) for value, _, _ in marks if value > 0 and math.isfinite(value)]
    for value, colour, dash in marks:
        if value > 0 and math.isfinite(value):
            axes.axvline(math.log10(value), color=colour, linestyle=dash, linewidth=1.6)
    used = np.flatnonzero(share)
    ends = [*found, *(float(bounds[place]) for place in used), *(float(bounds[place + 1]) for place in used)] or [-1.0, 0.0]
    axes.set_xlim(min(ends) - 0.3, max(ends) + 0.3)
    axes.set_ylim(0, max(1.08 * float(share.max()), 1e-3))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"1e{value:+03.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.set_xlabel("error / RMS of the output")
    axes.set_ylabel("elements")
    axes.grid(axis="y")


def _paint_latency(axes: Axes, evidence: LatencyEvidence, medians: tuple[float, float], limit_ms: float) -> None:
    lowest = min(*evidence.samples_ms, *evidence.reference_samples_ms)
    bins = np.linspace(lowest - 0.02 * (limit_ms - lowest), limit_ms, _NUM_BINS + 1)
    both = ((evidence.reference_samples_ms, REFERENCE, medians[1]), (evidence.samples_ms, ACCENT, medians[0]))
    for samples, colour, median in both:
        share = np.histogram(samples, bins)[0] * (100 / len(samples))
        axes.stairs(share, bins, fill=True, color=colour, alpha=0.45, linewidth=0)
        axes.stairs(share, bins, color=colour, linewidth=1.2)
        axes.axvline(median, color=colour, linewidth=1.6, linestyle=(0, (4, 2)))
    axes.set_xlim(float(bins[0]), limit_ms)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.set_xlabel("ms per call")
    axes.set_ylabel("samples")
    axes.grid(axis="y")


def _paint_rounds(axes: Axes, evidence: LatencyEvidence, required: float | None) -> None:
    speedups = [math.exp(-value) for value in evidence.round_log_ratios]
    axes.axhspan(evidence.speedup_low, evidence.speedup_high, color=ACCENT, alpha=0.18, linewidth=0)
    axes.axhline(evidence.speedup, color=ACCENT, linewidth=1.2)
    if required is not None:
        axes.axhline(required, color=FAIL, linewidth=1.4)
    axes.plot(range(1, len(speedups) + 1), speedups, linestyle="none", marker="o", markersize=4, color=ACCENT)
    axes.set_xlim(0.2, len(speedups) + 0.8)
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} x"))
    axes.set_xlabel("round")
    axes.set_ylabel("speed-up")
    axes.grid(axis="y")


def _paint_speedups(axes: Axes, races: Sequence[tuple[LatencyEvidence, Outcome]], required: float | None) -> None:
    for place, (race, _) in enumerate(races):
        ends = [race.speedup_low, race.speedup_high]
        axes.plot(ends, [place, place], color=ACCENT, linewidth=2.4, solid_capstyle="butt")
        axes.plot(ends, [place, place], color=ACCENT, marker="|", markersize=9, markeredgewidth=1.8, linestyle="none")
        axes.plot([race.speedup], [place], color=ACCENT, marker="o", markersize=6)
        text = f"{race.speedup:.2f} x"
        axes.annotate(text, (race.speedup, place), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9, color=INK)
    axes.axvline(1.0, color=REFERENCE, linewidth=1.2, linestyle=(0, (2, 1.5)))
    if required is not None:
        axes.axvline(required, color=FAIL, linewidth=1.4)
    shown = [1.0 if required is None else required, 1.0]
    shown += [end for race, _ in races for end in (race.speedup_low, race.speedup, race.speedup_high)]
    finite = [value for value in shown if math.isfinite(value)]
    space = max(0.08 * (max(finite) - min(finite)), 0.03)
    axes.set_xlim(min(finite) - space, max(finite) + space)
    axes.set_yticks(range(len(races)), labels=[units.shortened(race.candidate, 22) for race, _ in races])
    axes.set_ylim(len(races) - 0.5, -0.75)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} x"))
    axes.grid(axis="x", color=GRID)


def _finite_edges(edges: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the edges with open ends drawn one bin wide."""
    bounds = np.asarray(edges, dtype=np.float64)
    inner = bounds[np.isfinite(bounds)]
    step = float(np.median(np.diff(inner))) if len(inner) > 1 else 1.0
    if not np.isfinite(bounds[0]):
        bounds[0] = inner[0] - step
    if not np.isfinite(bounds[-1]):
        bounds[-1] = inner[-1] + step
    return bounds


def _shown_range(evidence: LatencyEvidence) -> tuple[float, int]:
    """Return the right edge in milliseconds and how many samples lie beyond it: a long tail would flatten everything else."""
    samples = np.concatenate([np.asarray(evidence.samples_ms), np.asarray(evidence.reference_samples_ms)])
    ends = [float(np.percentile(group, 99)) for group in (evidence.samples_ms, evidence.reference_samples_ms)]
    spread = max(ends) - float(samples.min())
    limit_ms = min(float(samples.max()), max(ends) + 0.15 * spread) if spread > 0 else float(samples.max())
    limit_ms = max(limit_ms, float(samples.min()) * 1.02 + 1e-9)
    return limit_ms, int((samples > limit_ms).sum())


def _largest(evidence: LatencyEvidence) -> float:
    return max(*evidence.samples_ms, *evidence.reference_samples_ms)


def _label(name: str) -> str:
    return units.shortened(re.sub(r"\.weight$", "", name) or name, 30)
