"""The run folder: what is written, in which order, and reading it back.

``samples.json`` and ``report.json`` come first and are complete by themselves; a fault in rendering loses neither.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from exporter.artifacts import Report
from exporter.errors import ArtifactError
from exporter.files import write_bytes
from exporter.report.document import document_from_report, report_from_document, samples_from_report
from exporter.report.junit import junit_from_report
from exporter.report.summary import summary_from_report

__all__ = ["HTML_NAME", "JSON_NAME", "JUNIT_NAME", "SAMPLES_NAME", "SUMMARY_NAME", "read_report", "write_report"]

JSON_NAME: Final = "report.json"
SAMPLES_NAME: Final = "samples.json"
JUNIT_NAME: Final = "junit.xml"
SUMMARY_NAME: Final = "summary.md"
HTML_NAME: Final = "report.html"


def write_report(report: Report, folder: Path) -> None:
    """Write the report and everything rendered from it into ``folder``, each file whole or not at all.

    Raises:
        ArtifactError: the folder cannot be written to (E711).
    """
    samples = samples_from_report(report)
    document = document_from_report(report)
    if samples:
        content = _json_bytes(samples, indent=None)
        write_bytes(folder / SAMPLES_NAME, content)
        document["samples"] = {"file": SAMPLES_NAME, "sha256": hashlib.sha256(content).hexdigest()}
    write_bytes(folder / JSON_NAME, _json_bytes(document, indent=1))
    write_bytes(folder / JUNIT_NAME, junit_from_report(report))
    write_bytes(folder / SUMMARY_NAME, summary_from_report(report).encode())
    from exporter.report.page import page_from_report  # plotting and templates are loaded here, and only here

    write_bytes(folder / HTML_NAME, page_from_report(report).encode())


def read_report(folder: Path) -> Report:
    """Return the report that ``write_report`` left in ``folder`` (or in the folder of a ``report.json``), equal to the one written.

    Raises:
        ArtifactError: no report there (E741), another schema (E742), not a report (E743), or its samples are missing or
            altered (E744).
    """
    path = folder if folder.suffix == ".json" else folder / JSON_NAME
    document = _read_json(path)
    stored = document.get("samples") if isinstance(document, dict) else None
    samples = _read_samples(path.parent, stored) if isinstance(stored, dict) else None
    return report_from_document(document, samples, where=str(path))


def _read_json(path: Path) -> Any:  # noqa: ANN401 - any JSON value
    try:
        content = path.read_bytes()
    except OSError as err:
        facts = {"file": path, "found": err.strerror or err}
        raise ArtifactError("E741", "there is no report here", facts=facts, help="exporter run makes one") from err
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as err:
        raise ArtifactError("E743", "the file does not hold a report", facts={"file": path, "found": err, "expected": "JSON"}) from err


def _read_samples(folder: Path, stored: dict[str, Any]) -> dict[str, Any]:
    path = folder / SAMPLES_NAME
    try:
        content = path.read_bytes()
    except OSError as err:
        raise ArtifactError("E744", "the raw samples of the report are missing", facts={"file": path, "found": err.strerror or err}) from err
    found = hashlib.sha256(content).hexdigest()
    if found != stored.get("sha256"):
        facts = {"file": path, "found": f"sha256:{found}", "expected": f"sha256:{stored.get('sha256')}"}
        raise ArtifactError("E744", "the raw samples of the report were altered", facts=facts)
    samples: dict[str, Any] = json.loads(content)
    return samples


def _json_bytes(value: Any, *, indent: int | None) -> bytes:  # noqa: ANN401 - any JSON value
    separators = (",", ":") if indent is None else (",", ": ")
    text = json.dumps(value, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode(errors="backslashreplace")  # a lone surrogate, inside a string, becomes its JSON escape
