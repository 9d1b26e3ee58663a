from pathlib import Path

import pytest

from exporter.report.summary import summary_from_report
from tests.report import builders

GOLDEN = Path(__file__).parent / "golden"
REPORTS = {"passing": builders.passing, "failing": builders.failing, "mixed": builders.mixed, "hostile": builders.hostile}


@pytest.mark.parametrize("name", REPORTS)
def test_summary_is_as_recorded(name, update) -> None:
    """The Markdown is the recorded one; ``--update`` records it anew, for review."""
    path = GOLDEN / f"summary-{name}.md"
    text = summary_from_report(REPORTS[name]())
    if update:
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", REPORTS)
def test_verdict_comes_first_and_the_table_is_rectangular(name) -> None:
    """The first line is the overall outcome, and no text of a file breaks a row of the table."""
    lines = summary_from_report(REPORTS[name]()).splitlines()
    assert lines[0].endswith(REPORTS[name]().outcome.value)
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == len(REPORTS[name]().verdicts) + 2
    assert {row.replace("\\|", "").count("|") for row in rows} == {6}


def test_summary_stays_short() -> None:
    """What does not pass is listed, what passes is one row."""
    assert len(summary_from_report(builders.passing()).splitlines()) < 20
    assert len(summary_from_report(builders.failing()).encode()) < 4000


def test_markup_from_a_file_is_text() -> None:
    """No tag, link or emphasis from a file takes effect."""
    text = summary_from_report(builders.hostile())
    assert "<img" not in text
    assert "\\*\\*b\\*\\*" in text
