"""Each stage says what it takes and what it gives, and docs/architecture.md says the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
STAGES = ("checkpoint", "weights", "graph", "onnx_export", "engine", "verify", "report")
OPENING = re.compile(r"Stage (\d)/7: (.+?) -> (.+?)\.?$")
ROW = re.compile(r"^\| (\d) \| `exporter/(\w+)/` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$")


def opening_of(stage: str) -> re.Match[str] | None:
    """Return the match of the first line of the stage's docstring."""
    doc = ast.get_docstring(ast.parse((ROOT / "exporter" / stage / "__init__.py").read_text(encoding="utf-8"))) or ""
    return OPENING.match(doc.split("\n", 1)[0])


def rows() -> dict[str, tuple[str, str, str]]:
    """Return stage -> (number, takes, gives) of the table in docs/architecture.md."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return {m[2]: (m[1], m[3].strip(), m[4].strip()) for line in page.splitlines() if (m := ROW.match(line))}


@pytest.mark.parametrize(("number", "stage"), list(enumerate(STAGES, start=1)), ids=STAGES)
def test_docstring_opens_with_the_stage(number: int, stage: str) -> None:
    """The docstring of the package opens with ``Stage n/7: <takes> -> <gives>``, and the page has the same words."""
    opening = opening_of(stage)
    assert opening is not None, f"exporter/{stage}/__init__.py does not open with Stage {number}/7: ... -> ..."
    assert opening[1] == str(number)
    assert rows()[stage] == (str(number), opening[2].strip(), opening[3].strip())


def test_page_lists_the_stages_in_order() -> None:
    """The table has every stage once, in the order of the flow."""
    assert tuple(rows()) == STAGES
