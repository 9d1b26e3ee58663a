"""``exporter report``: render a run again."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.options import config_option, config_with, screen_options
from exporter.cli.screen import Screen

__all__ = ["command"]


@click.command("report")
@click.argument("run", required=False, metavar="[RUN]", type=click.Path(path_type=Path))
@config_option
@screen_options
@click.pass_obj
def command(screen: Screen, /, run: Path | None, config_path: Path | None) -> None:
    """Render the report of RUN again, a run folder or its name; without RUN the newest one.

    Reads report.json and writes report.html, junit.xml and summary.md beside it; nothing is measured.
    """
    from exporter.artifacts import to_json
    from exporter.report import read_report, render_terminal, write_report

    folder = run if run is not None and run.is_dir() else _folder(config_with(config_path).work_dir / "runs", run)
    report = read_report(folder)
    write_report(report, folder)
    screen.show(render_terminal(report, folder))
    screen.result({"folder": str(folder), "report": to_json(report)})


def _folder(runs: Path, run: Path | None) -> Path:
    from exporter.errors import ArtifactError

    if run is not None and (runs / run).is_dir():
        return runs / run
    found = sorted((path.parent for path in runs.glob("*/report.json")), key=lambda path: (path / "report.json").stat().st_mtime)
    if run is not None or not found:
        names = ", ".join(path.name for path in found) or "none"
        facts = {"looked in": runs, "expected": run or "at least one run", "found": names}
        raise ArtifactError("E734", "there is no such run", facts=facts, help="exporter run makes one")
    return found[-1]
