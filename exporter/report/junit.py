"""JUnit XML: one test case per check, in the shape that CI servers share.

FAIL is a failure; INCONCLUSIVE is a failure where the check is required, else skipped; NOT_RUN is an error where the check is
required, else skipped. The reason is the message; the numbers are the text.
"""

from __future__ import annotations

import datetime as dt
import xml.etree.ElementTree as ET
from typing import Final

from exporter.artifacts import Outcome, Report, Verdict
from exporter.errors import printable
from exporter.report import phrases
from exporter.report.terminal import render_terminal, render_verdict

__all__ = ["junit_from_report"]

_SUITE_NAME: Final = "exporter"


def junit_from_report(report: Report) -> bytes:
    """Return the report as JUnit XML, UTF-8."""
    cases = [_case(verdict) for verdict in report.verdicts]
    tags = [child.tag for case in cases for child in case]
    counts = {
        "tests": str(len(cases)),
        "failures": str(tags.count("failure")),
        "errors": str(tags.count("error")),
        "skipped": str(tags.count("skipped")),
    }
    root = ET.Element("testsuites")
    attributes = {
        "name": _SUITE_NAME,
        "package": _SUITE_NAME,
        "id": "0",
        "timestamp": _timestamp(report.started),
        "hostname": _clean(report.environment.get("host", "")) or "localhost",
        "time": f"{report.seconds:.3f}",
    }
    suite = ET.SubElement(root, "testsuite", {**attributes, **counts})
    properties = ET.SubElement(suite, "properties")
    facts = {"run": report.run, "outcome": report.outcome.value, **{f"lineage.{name}": text for name, text in report.lineage.items()}}
    for name, text in facts.items():
        ET.SubElement(properties, "property", {"name": _clean(name), "value": _clean(text)})
    suite.extend(cases)
    ET.SubElement(suite, "system-out").text = "\n".join(render_terminal(report))
    ET.SubElement(suite, "system-err")
    ET.indent(root, " ")
    content: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def _case(verdict: Verdict) -> ET.Element:
    attributes = {"classname": _clean(f"{_SUITE_NAME}.{verdict.check}"), "name": _clean(verdict.subject), "time": f"{verdict.seconds:.3f}"}
    case = ET.Element("testcase", attributes)
    tag = _tag(verdict)
    if tag == "skipped":
        ET.SubElement(case, tag, {"message": _clean(_message(verdict))})
    elif tag:
        child = ET.SubElement(case, tag, {"message": _clean(_message(verdict)), "type": verdict.outcome.value})
        child.text = "\n".join(render_verdict(verdict))
    return case


def _tag(verdict: Verdict) -> str:
    if verdict.outcome is Outcome.PASS:
        return ""
    if not phrases.blocks(verdict):
        return "skipped"
    return "error" if verdict.outcome is Outcome.NOT_RUN else "failure"


def _message(verdict: Verdict) -> str:
    reason = verdict.reason or phrases.title(verdict)
    return f"{verdict.outcome.value}: {reason}"


def _timestamp(started: str) -> str:
    """Return ``started`` in UTC without an offset, as the format wants it."""
    moment = dt.datetime.fromisoformat(started.replace("Z", "+00:00"))
    if moment.tzinfo is not None:
        moment = moment.astimezone(dt.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S")


def _clean(text: str) -> str:
    """Return ``text`` without characters that XML 1.0 cannot hold."""
    return printable(text)
