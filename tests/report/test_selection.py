"""A choice of weights by a metric is told in every form of the report."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from exporter.artifacts import Report, Selection
from exporter.report.page import page_from_report
from exporter.report.summary import summary_from_report
from exporter.report.terminal import render_bake
from tests.report import builders


def selected(name: str = "swa") -> Report:
    """Return a run whose weights were chosen among three copies, one of which could not be measured."""
    report = builders.recalibrated()
    assert report.bake is not None
    choice = Selection("accuracy", 360, {"ema": 0.975, name: 0.9875, "raw": 0.9611}, name, {"teacher": "its names are not the model's"})
    return dataclasses.replace(report, bake=dataclasses.replace(report.bake, selection=choice, remarks=("a remark of the layout",)))


def test_every_form_tells_what_the_weights_were_chosen_by() -> None:
    """The metric, the samples, the value of every copy, the chosen one, and why one has no value."""
    report = selected()
    assert report.bake is not None
    for text in (page_from_report(report), summary_from_report(report), "\n".join(render_bake(report.bake, Path("out.safetensors")))):
        for part in ("accuracy on 360 samples", "0.9875   chosen", "0.9611", "not measured: its names are not the model"):
            assert part in text
    assert "a remark of the layout" in page_from_report(report)


def test_a_hostile_name_of_a_copy_stays_text() -> None:
    """Markup and control characters in the name of an average are shown, not obeyed."""
    report = selected(builders.HOSTILE)
    assert report.bake is not None
    assert "<img" not in page_from_report(report)
    assert "<img" not in summary_from_report(report)
    assert "\x1b" not in "".join(render_bake(report.bake, Path("out.safetensors")))
