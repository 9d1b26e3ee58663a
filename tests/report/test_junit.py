import dataclasses
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from exporter.artifacts import Outcome, Verdict
from exporter.report.junit import junit_from_report
from tests.report import builders

SUITE_ATTRIBUTES = {"name", "package", "id", "timestamp", "hostname", "time", "tests", "failures", "errors", "skipped"}


def _parse(report):
    return ET.fromstring(junit_from_report(report))


def _with(*verdicts):
    return dataclasses.replace(builders.passing(), verdicts=verdicts)


def _check_shape(root):
    """Hold the document against what the JUnit schemas in use have in common."""
    assert (root.tag, dict(root.attrib), [child.tag for child in root]) == ("testsuites", {}, ["testsuite"])
    suite = root[0]
    assert set(suite.attrib) == SUITE_ATTRIBUTES
    tags = [child.tag for child in suite]
    assert tags[0] == "properties"
    assert tags[-2:] == ["system-out", "system-err"]
    cases = suite[1:-2]
    assert {case.tag for case in cases} <= {"testcase"}
    found = {"failure": 0, "error": 0, "skipped": 0}
    for case in cases:
        assert set(case.attrib) == {"classname", "name", "time"}
        assert float(case.attrib["time"]) >= 0
        assert len(case) <= 1
        for child in case:
            assert set(child.attrib) == ({"message"} if child.tag == "skipped" else {"message", "type"})
            found[child.tag] += 1
    counted = {key: int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")}
    assert counted == {"tests": len(cases), "failures": found["failure"], "errors": found["error"], "skipped": found["skipped"]}
    for item in suite[0]:
        assert (item.tag, set(item.attrib)) == ("property", {"name", "value"})
    assert len(suite.attrib["timestamp"]) == len("2026-11-20T13:03:22")


@pytest.mark.parametrize("build", [builders.passing, builders.failing, builders.mixed, builders.hostile], ids=lambda build: build.__name__)
def test_document_has_the_common_shape(build) -> None:
    """Elements, attributes, their order and the counts are those that CI servers agree on."""
    _check_shape(_parse(build()))


@pytest.mark.parametrize(
    ("outcome", "required", "tag"),
    [
        (Outcome.PASS, True, None),
        (Outcome.PASS, False, None),
        (Outcome.FAIL, True, "failure"),
        (Outcome.FAIL, False, "failure"),
        (Outcome.INCONCLUSIVE, True, "failure"),
        (Outcome.INCONCLUSIVE, False, "skipped"),
        (Outcome.NOT_RUN, True, "error"),
        (Outcome.NOT_RUN, False, "skipped"),
    ],
)
def test_outcome_becomes_its_element(outcome, required, tag) -> None:
    """Every outcome has one element, and its reason is the message."""
    root = _parse(_with(Verdict("parity", "onnx", outcome, "because of this", required=required)))
    _check_shape(root)
    case = root.find(".//testcase")
    assert (case.attrib["classname"], case.attrib["name"]) == ("exporter.parity", "onnx")
    assert [child.tag for child in case] == ([tag] if tag else [])
    if tag:
        assert case[0].attrib["message"] == f"{outcome.value}: because of this"


def test_failure_carries_the_numbers() -> None:
    """The text of a failure is the verdict as the screen shows it."""
    failure = _parse(builders.failing()).find(".//testcase[@classname='exporter.parity']/failure")
    assert "it would pass from rtol 6.0e-02 on" in failure.text
    assert "suspect: fold of layer2.0.bn2" in failure.text


def test_control_characters_are_escaped() -> None:
    """Characters that XML cannot hold appear as escapes, and markup as text."""
    case = _parse(_with(Verdict("parity", builders.HOSTILE, Outcome.FAIL, "a\x00b\x1b[31m\ud800\n<c>&"))).find(".//testcase")
    assert case.attrib["name"].startswith('</script><img src=x onerror="alert(1)">')
    assert case[0].attrib["message"] == "FAIL: a\\x00b\\x1b[31m\\ud800\\n<c>&"


def test_time_is_given_in_utc() -> None:
    """The start is converted, since the format has no room for an offset."""
    assert _parse(builders.passing())[0].attrib["timestamp"] == "2026-11-20T13:03:22"


def test_document_is_as_recorded(update) -> None:
    """The whole document is the recorded one; ``--update`` records it anew, for review."""
    path = Path(__file__).parent / "golden" / "junit-failing.xml"
    content = junit_from_report(builders.failing())
    if update:
        path.write_bytes(content)
    assert content == path.read_bytes()
