"""Stage 7/7: Verdicts -> Report (one run folder: JSON, JUnit, Markdown, HTML and the screen).

`report.json` is the report; every other file is rendered from it and can be rendered again. Importing this package imports
no plotting and no template library: those are loaded when a page is rendered.
"""

from __future__ import annotations

from exporter.report.document import SCHEMA_VERSION, document_from_report, report_from_document
from exporter.report.explanation import render_explanations
from exporter.report.folder import read_report, write_report
from exporter.report.terminal import render_bake, render_fold, render_terminal, render_verdict

__all__ = [
    "SCHEMA_VERSION",
    "document_from_report",
    "read_report",
    "render_bake",
    "render_explanations",
    "render_fold",
    "render_terminal",
    "render_verdict",
    "report_from_document",
    "write_report",
]
