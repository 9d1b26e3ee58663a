"""``report.html``: one self-contained page; no script, no network, light, dark and print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import jinja2
from markupsafe import Markup

from exporter.artifacts import (
    BATCH_NORM_SOURCES,
    LatencyEvidence,
    MetricEvidence,
    ParityEvidence,
    RangeEvidence,
    Report,
    TensorDrift,
    Verdict,
    to_json,
)
from exporter.errors import printable
from exporter.report import phrases, pictures, units
from exporter.report.fold_table import fold_table
from exporter.report.network_picture import network_picture
from exporter.report.picture import Picture

__all__ = ["page_from_report"]

_MAX_DRIFT_ROWS: Final = 1000
_MAX_PICTURES_PER_VERDICT: Final = 8


def page_from_report(report: Report) -> str:
    """Return the report as HTML5; every text of the report is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("exporter.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters["outcome_class"] = lambda outcome: outcome.value.lower().replace("_", "-")
    numbered = list(enumerate(report.verdicts))
    css = environment.get_template("style.css").render()
    return environment.get_template("report.html").render(
        report=report,
        css=Markup(css),  # noqa: S704 - ours
        units=units,
        phrases=phrases,
        sources=BATCH_NORM_SOURCES,
        parities=[(index, verdict, verdict.evidence) for index, verdict in numbered if isinstance(verdict.evidence, ParityEvidence)],
        races=[(index, verdict, verdict.evidence) for index, verdict in numbered if isinstance(verdict.evidence, LatencyEvidence)],
        ranges=[(verdict, verdict.evidence) for verdict in report.verdicts if isinstance(verdict.evidence, RangeEvidence)],
        metrics=_metric_groups(report),
        blocking=[verdict for verdict in report.verdicts if phrases.blocks(verdict)],
        settings=list(_flat_settings(to_json(report.config))),
        drift=_largest_drift(report),
        pictures=_pictures(report),
        network=network_picture(report),
        **fold_table(report),
    )


def _finalize(value: Any) -> Any:  # noqa: ANN401 - whatever a template prints
    """Escape control characters; markup of our own passes."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return printable(value, keep_newlines=True)


def _pictures(report: Report) -> dict[str, Picture]:
    """Return the pictures by place: ``drift``, ``speedup``, ``error-<verdict>-<output>``, ``latency-<verdict>``, ``rounds-<verdict>``."""
    races = [(verdict.evidence, verdict.outcome) for verdict in report.verdicts if isinstance(verdict.evidence, LatencyEvidence)]
    drawn: list[Picture | None] = [
        pictures.drift_picture(report.bake) if report.bake is not None else None,
        pictures.speedup_picture(races),
    ]
    for index, verdict in enumerate(report.verdicts):
        evidence = verdict.evidence
        if isinstance(evidence, ParityEvidence):
            for place, output in enumerate(evidence.outputs[:_MAX_PICTURES_PER_VERDICT]):
                drawn.append(pictures.error_picture(verdict.subject, output, report.histogram_edges, name=f"error-{index}-{place}"))
        elif isinstance(evidence, LatencyEvidence):
            drawn += [pictures.latency_picture(evidence, name=f"latency-{index}"), pictures.rounds_picture(evidence, name=f"rounds-{index}")]
    return {picture.name: picture for picture in drawn if picture is not None}


def _metric_groups(report: Report) -> list[list[Verdict]]:
    """Return the verdicts on a task metric, those with the same numbers together."""
    groups: list[list[Verdict]] = []
    for verdict in report.verdicts:
        if isinstance(verdict.evidence, MetricEvidence):
            same = next((group for group in groups if group[0].evidence == verdict.evidence), None)
            if same is None:
                groups.append([verdict])
            else:
                same.append(verdict)
    return groups


def _largest_drift(report: Report) -> tuple[TensorDrift, ...]:
    drift = report.bake.drift if report.bake is not None else ()
    if len(drift) <= _MAX_DRIFT_ROWS:
        return drift
    return tuple(sorted(drift, key=lambda item: -item.relative)[:_MAX_DRIFT_ROWS])


def _flat_settings(value: Any, path: str = "") -> Iterable[tuple[str, str]]:  # noqa: ANN401 - any JSON value
    """Yield ``(dotted key, value)`` of the resolved configuration, in its own order."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat_settings(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, _setting_text(value)


def _setting_text(value: Any) -> str:  # noqa: ANN401 - any JSON value
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return "[" + ", ".join(_setting_text(item) for item in value) + "]"
    return "{}" if isinstance(value, Mapping) else str(value)
