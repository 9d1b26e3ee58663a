"""What is said of BatchNorm's statistics, in every form of the report."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from exporter.artifacts import BATCH_NORM_SOURCES, BatchNormStatistics
from exporter.report import document_from_report, render_bake, render_terminal, report_from_document
from exporter.report.page import page_from_report
from exporter.report.summary import summary_from_report
from tests.report import builders

SAID = (
    "estimated on 200 samples in batches of at most 64, 200 or more values per channel",
    "accuracy before 11.3 %, after 97.8 %",
    "outputs moved, relative to before: logits 7.5e-01",
    "largest change: means of stem.1 by 4.2e-01 standard deviations, variances of stages.0.bn by inf of themselves",
)
WARNING = "stages.0.bn had 200 values per channel; no sample came through aux.bn"


def test_every_form_tells_what_recalibration_changed() -> None:
    """Screen, bake screen, page and summary give before and after, the largest change, and the warning."""
    report = builders.recalibrated()
    assert report.bake is not None
    screens = {
        "run": "\n".join(render_terminal(report)),
        "bake": "\n".join(render_bake(report.bake, Path("x.safetensors"))),
        "page": page_from_report(report),
        "summary": summary_from_report(report),
    }
    for name, text in screens.items():
        plain = text.replace("\\", "")
        for said in (*SAID, WARNING):
            assert said in plain, (name, said)
    assert ">12800<" in screens["page"]
    assert ">inf<" in screens["page"]


def test_the_document_holds_it_and_gives_it_back() -> None:
    """report.json has the numbers of every layer, infinity included, and reads back as the same value."""
    report = builders.recalibrated()
    document = document_from_report(report)
    assert document["bake"]["batch_norm"]["recalibration"]["layers"][1]["variance_change"] == "inf"
    read = report_from_document(document)
    assert read.bake == report.bake


@pytest.mark.parametrize("source", BATCH_NORM_SOURCES)
def test_every_source_has_words(source: str) -> None:
    """The page names the source; without statistics the row is not there."""
    report = builders.passing()
    assert report.bake is not None
    statistics = BatchNormStatistics(source, "auto", 1)
    page = page_from_report(dataclasses.replace(report, bake=dataclasses.replace(report.bake, batch_norm=statistics)))
    assert BATCH_NORM_SOURCES[source] in page.replace("&#39;", "'")
    assert "(1 layer)" in page
    assert "BatchNorm statistics" not in page_from_report(report)


def test_names_of_layers_are_text() -> None:
    """A layer's name that attacks a page or a screen is shown, escaped."""
    page = page_from_report(builders.recalibrated(builders.HOSTILE))
    assert "<img" not in page
    assert "\x1b" not in "".join(render_terminal(builders.recalibrated(builders.HOSTILE)))
    assert "<img" not in summary_from_report(builders.recalibrated(builders.HOSTILE))
