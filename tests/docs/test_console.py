"""What the pages show is what the program does."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, Block, Command, blocks_of, commands_of, pages, pattern_of

LANGUAGES = {"", "bash", "console", "diff", "ini", "json", "mermaid", "python", "sh", "text", "toml", "xml", "yaml"}
ALL = [block for page in pages() for block in blocks_of(page)]
SHOWN = {name: [b for b in ALL if b.page == name and b.language == "console" and not b.not_run] for name in sorted({b.page for b in ALL})}
SHIM = """#!/bin/sh
exec {python} -c 'import sys; from exporter.cli.app import main; sys.exit(main())' "$@"
"""


@pytest.fixture
def shell_environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``exporter`` is this checkout and ``python`` this interpreter."""
    folder = tmp_path / "bin"
    folder.mkdir()
    shim = folder / "exporter"
    shim.write_text(SHIM.format(python=shlex.quote(sys.executable)))
    shim.chmod(0o755)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "160", "TERM": "dumb", "CUDA_VISIBLE_DEVICES": ""}


def run(command: Command, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Run one shown line in ``folder``; return its exit status and what a terminal would have shown."""
    done = subprocess.run(
        ["bash", "-c", command.line],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    return done.returncode, done.stdout


def squeezed(output: str) -> str:
    """Return ``output`` without blank lines and with runs of spaces made one."""
    return "".join(f"{' '.join(line.split())}\n" for line in output.splitlines() if line.strip())


def mismatch(block: Block, command: Command, status: int, output: str) -> str:
    """Return what is wrong with the outcome of ``command``, empty where nothing is."""
    if status != command.exit_status:
        return f"{block}: `{command.line}` ended with {status}, the page says {command.exit_status}\n{output}"
    if command.expected and not pattern_of(command.expected, numbers_vary=command.numbers_vary).fullmatch(squeezed(output)):
        return f"{block}: `{command.line}` prints\n{output}\nthe page shows\n" + "\n".join(command.expected)
    return ""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [name for name, blocks in SHOWN.items() if blocks])
def test_shown_sessions_are_real(page: str, digits: Path, shell_environment: dict[str, str]) -> None:
    """Every ``$`` line of a page, run in order in one copy of the fixture, prints what the page shows and ends as it says."""
    problems = []
    for block in SHOWN[page]:
        for command in commands_of(block):
            problem = mismatch(block, command, *run(command, digits, shell_environment))
            if problem:
                problems.append(problem)
    assert not problems, "\n\n".join(problems)


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "python" and not b.not_run], ids=str)
def test_shown_programs_run(block: Block, digits: Path, shell_environment: dict[str, str]) -> None:
    """Every Python block of a page runs by itself in a copy of the fixture."""
    done = subprocess.run(
        [sys.executable, "-c", block.text], cwd=digits, env=shell_environment, text=True, capture_output=True, timeout=280, check=False
    )
    assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "toml" and not b.not_run], ids=str)
def test_shown_settings_are_accepted(block: Block, tmp_path: Path) -> None:
    """Every TOML block of a page is a configuration that is accepted as it stands."""
    from exporter.config import load_config

    name = "pyproject.toml" if "[tool." in block.text else "exporter.toml"
    (tmp_path / name).write_text(block.text, encoding="utf-8")
    load_config(tmp_path / name, environment={})


@pytest.mark.parametrize("block", ALL, ids=str)
def test_blocks_say_what_they_are(block: Block) -> None:
    """Languages are from a short list, a console block has a command, and a block that is not run has a reason of some words."""
    assert block.language in LANGUAGES
    if block.language == "console":
        assert commands_of(block)
    for reason in (block.not_run, block.numbers_vary):
        assert not reason or len(reason.split()) > 2


@pytest.mark.parametrize(
    ("expected", "output", "fits"),
    [
        (("a  b",), "a b\n", True),
        (("a ... c",), "a b c\n", True),
        (("a … c",), "a c\n", False),
        (("first", "...", "last"), "first\nx\ny\nlast\n", True),
        (("first", "...", "last"), "first\nlast\n", True),
        (("first", "last"), "first\nx\nlast\n", False),
        (("first",), "first\nmore\n", False),
        (("p50 ... ms",), "p50 1.5 s\n", False),
    ],
    ids=["spaces", "inside a line", "no text between", "lines", "no lines", "line too many", "output goes on", "other unit"],
)
def test_comparison_can_fail(expected: tuple[str, ...], output: str, fits: bool) -> None:
    """The comparison takes ``...`` for anything in its place, and nothing else for granted."""
    assert (pattern_of(expected).fullmatch(squeezed(output)) is not None) is fits
    command = Command("exporter", expected, 0)
    block = Block("page.md", 1, "console", "")
    assert (mismatch(block, command, 0, output) == "") is fits
    assert "ended with 3" in mismatch(block, command, 3, output)


@pytest.mark.parametrize(
    ("output", "fits"),
    [
        ("12.5 x faster, 3e-07 of 2.5e+01 (onnx)\n", True),
        ("2 x faster, 1 of 1 (onnx)\n", True),
        ("2 x slower, 1 of 1 (onnx)\n", False),
        ("x faster, 1 of 1 (onnx)\n", False),
    ],
    ids=["other numbers", "whole numbers", "other words", "no number"],
)
def test_numbers_may_vary_and_words_not(output: str, fits: bool) -> None:
    """Where numbers vary, each stands for any number, and nothing else does."""
    shown = ("1.83 x faster, 2.4e-07 of 1 (onnx)",)
    assert (pattern_of(shown, numbers_vary=True).fullmatch(squeezed(output)) is not None) is fits
    assert pattern_of(shown).fullmatch(squeezed(output)) is None
