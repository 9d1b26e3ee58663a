"""The verdict on the range of float16, wherever a report shows it."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET

from exporter.artifacts import Outcome, RangeEvidence, Report, Verdict
from exporter.report.document import document_from_report, report_from_document
from exporter.report.junit import junit_from_report
from exporter.report.page import page_from_report
from exporter.report.summary import summary_from_report
from exporter.report.terminal import render_terminal, render_verdict
from tests.report import builders

REASON = "largest value 3.2e+03 in conv (Conv), 20 times below 65504"
REMARK = "above 512 float16 has steps of 0.5 and more: conv (Conv) 3.2e+03, steps of 2"
EVIDENCE = RangeEvidence(
    feeds=("256 samples, batch 32",),
    num_samples=256,
    is_recorded=True,
    num_tensors=40,
    largest=3200.0,
    largest_in="conv (Conv)",
    small_share=0.25,
    small_in="relu (Relu)",
    remarks=(REMARK,),
)


def report(outcome: Outcome = Outcome.PASS) -> Report:
    """A report with such a verdict among others."""
    verdict = Verdict("range", "onnx", outcome, REASON, required=outcome is Outcome.PASS, evidence=EVIDENCE)
    plain = builders.passing()
    return dataclasses.replace(plain, verdicts=(*plain.verdicts, verdict))


def test_it_goes_through_the_document_and_back():
    """The JSON names its kind; reading it gives the same verdict."""
    document = document_from_report(report())
    assert document["verdicts"][-1]["evidence"]["kind"] == "range"
    assert report_from_document(document).verdicts[-1] == report().verdicts[-1]


def test_every_view_shows_the_number_and_the_remark():
    """Screen, page and summary: what is largest, what it may be, and what to know of it; where it did not run, why."""
    lines = render_terminal(report())
    row = next(index for index, line in enumerate(lines) if line.startswith("range"))
    assert REASON in lines[row]
    assert lines[row + 1].strip() == REMARK
    assert render_verdict(report(Outcome.NOT_RUN).verdicts[-1])[0].endswith(REASON)
    page = page_from_report(report())
    assert "Range of float16" in page
    assert REMARK in page
    assert "largest 3.2e+03" in summary_from_report(report())


def test_it_is_a_case_of_junit():
    """PASS is a case without children; where it did not run, and need not, it is skipped."""
    for outcome, tags in ((Outcome.PASS, []), (Outcome.NOT_RUN, ["skipped"])):
        case = ET.fromstring(junit_from_report(report(outcome))).find(".//testcase[@classname='exporter.range']")
        assert case is not None
        assert [child.tag for child in case] == tags
