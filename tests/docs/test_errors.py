"""docs/errors.md lists exactly the codes that the program can raise."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.docs.markdown import ROOT

CODE = re.compile(r"E[1-9]\d\d")
ROW = re.compile(r"^\| `(E[1-9]\d\d)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$")


def codes_in(source: str) -> set[str]:
    """Return every string in ``source`` that is an error code and nothing else."""
    return {
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value)
    }


def codes_raised() -> dict[str, set[str]]:
    """Return code -> the modules that name it."""
    found: dict[str, set[str]] = {}
    for module in sorted((ROOT / "exporter").rglob("*.py")):
        for code in codes_in(module.read_text(encoding="utf-8")):
            found.setdefault(code, set()).add(module.relative_to(ROOT).as_posix())
    return found


def rows() -> list[tuple[str, ...]]:
    """Return (code, problem, cause, remedy) of every row of the page."""
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    return [match.groups() for line in page.splitlines() if (match := ROW.match(line))]


def test_page_and_program_agree() -> None:
    """Every code that the program can raise has a row, and every row a place that raises it."""
    listed, raised = {code for code, *_ in rows()}, codes_raised()
    assert {c: sorted(raised[c]) for c in set(raised) - listed} == {}, "raised, but not in docs/errors.md"
    assert listed - set(raised) == set(), "in docs/errors.md, but never raised"


def test_rows_are_in_order_and_complete() -> None:
    """Codes rise, none stands twice, and problem, cause and remedy are sentences."""
    codes = [code for code, *_ in rows()]
    assert codes == sorted(set(codes))
    assert all(len(text.split()) >= 2 for _, *texts in rows() for text in texts)


def classes_of(source: str) -> set[tuple[str, str]]:
    """Return (code, class) of every ``SomeError("E101", ...)`` in ``source``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id[:1].isupper() and node.args:
            code = node.args[0]
            if isinstance(code, ast.Constant) and isinstance(code.value, str) and CODE.fullmatch(code.value):
                found.add((code.value, node.func.id))
    return found


def test_a_code_has_one_class() -> None:
    """A code is raised with one class everywhere, so that it means one exit status."""
    classes: dict[str, set[str]] = {}
    for module in sorted((ROOT / "exporter").rglob("*.py")):
        for code, name in classes_of(module.read_text(encoding="utf-8")):
            classes.setdefault(code, set()).add(name)
    assert len(classes) > 50
    assert {code: names for code, names in classes.items() if len(names) > 1} == {}


def test_scan_sees_a_code() -> None:
    """The scan finds a code wherever it is a string by itself, and does not take prose for one."""
    assert codes_in('"""Raises E101."""\nraise CheckpointError("E102", "no")\nCODE = {"x": "E103"}\n') == {"E102", "E103"}
    assert Path(ROOT / "exporter" / "errors.py").is_file()
