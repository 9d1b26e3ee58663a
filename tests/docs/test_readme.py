"""The README's first two commands are complete, and are what CI runs."""

from __future__ import annotations

import re

from tests.docs.markdown import ROOT, blocks_of

MAIN_JOB, TESTS = blocks_of(ROOT / "README.md")[:2]


def test_first_two_blocks_are_one_line_each() -> None:
    """Each of the first two blocks is one command line for a shell: one command, or two joined by ``&&``."""
    for block in (MAIN_JOB, TESTS):
        assert block.language == "sh"
        assert len(block.text.splitlines()) == 1
        assert block.text.count("&&") <= 1
        assert not re.search(r"[;|\\]|sudo|https?:", block.text)


def test_both_install_with_the_pins() -> None:
    """Both start from a bare pip and take the pinned versions."""
    for block in (MAIN_JOB, TESTS):
        assert block.text.startswith("python -m pip install -c constraints.txt ")


def test_ci_runs_the_second_command() -> None:
    """``.ci/run`` runs the README's test command as it stands."""
    assert TESTS.text in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_tox_runs_the_main_job() -> None:
    """The ``demo`` environment runs what follows the installation in the README's first command."""
    job = MAIN_JOB.text.split("&&")[1].strip()
    demo = (ROOT / "tox.ini").read_text(encoding="utf-8").split("[testenv:demo]")[1].split("[testenv")[0]
    assert job == "exporter run --config fixtures/digits/exporter.toml"
    assert f"\n    {job}\n" in demo
