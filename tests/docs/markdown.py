"""Fenced blocks of the project's pages, with the markers that stand before them.

A page shows a terminal session as a ``console`` block. Every ``$ `` line in it is run; what follows is what it must print:

* ``...`` or ``…`` alone on a line stands for any number of lines, inside a line for any text; runs of spaces count as one;
* ``<!-- exit: 4 -->`` before the block is the exit status of its last command, 0 where nothing is said (the others: 0);
* ``<!-- numbers vary: REASON -->`` before a block: every number in it stands for any number, and a time in s also for one in ms;
* ``<!-- not run: REASON -->`` before a block leaves it out, and says why.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Block", "Command", "blocks_of", "commands_of", "pages", "pattern_of"]

ROOT = Path(__file__).resolve().parent.parent.parent
_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>[\w-]*)(?P<info>[^\n`]*)$")
_MARKER = re.compile(r"^\s*<!--\s*(exit|not run|numbers vary):\s*(.*?)\s*-->\s*$")
_NUMBER = re.compile(r"\d+(?:\\?\.\d+)?(?:e(?:\\?[+-])?\d+)?")
_TIME = re.compile(r"\\d\\ m?s\b")
_ANY = re.compile(r"\.\.\.|…")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    language: str
    text: str
    exit_status: int = 0
    not_run: str = ""
    numbers_vary: str = ""

    def __str__(self) -> str:
        """Return a name for the test: page and line."""
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One ``$ `` line, what it must print and how it must end."""

    line: str
    expected: tuple[str, ...]
    exit_status: int
    numbers_vary: bool = False


def pages() -> list[Path]:
    """Return README.md and every page of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of ``page`` in order."""
    name = page.relative_to(ROOT).as_posix()
    found: list[Block] = []
    markers: dict[str, str] = {}
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), start=1))
    for number, line in lines:
        if marker := _MARKER.match(line):
            markers[marker[1]] = marker[2]
        elif opening := _FENCE.match(line):
            body: list[str] = []
            for _, inner in lines:
                if inner.strip() == opening["fence"]:
                    break
                body.append(inner.removeprefix(opening["indent"]))
            status, not_run, vary = int(markers.get("exit", "0")), markers.get("not run", ""), markers.get("numbers vary", "")
            found.append(Block(name, number, opening["language"], "\n".join(body), status, not_run, vary))
            markers = {}
        elif line.strip():
            markers = {}
    return found


def commands_of(block: Block) -> list[Command]:
    """Return the commands of a ``console`` block."""
    sessions: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            sessions.append((line[2:], []))
        elif sessions:
            sessions[-1][1].append(line)
        elif line.strip():
            message = f"{block}: output before the first command"
            raise ValueError(message)
    last = len(sessions) - 1
    vary = bool(block.numbers_vary)
    return [Command(line, tuple(shown), block.exit_status if index == last else 0, vary) for index, (line, shown) in enumerate(sessions)]


def pattern_of(expected: tuple[str, ...], *, numbers_vary: bool = False) -> re.Pattern[str]:
    """Return the pattern that the whole output must match, with runs of spaces made one."""

    def exactly(text: str) -> str:
        literal = re.escape(text)
        if not numbers_vary:
            return literal
        return _TIME.sub(r"\\d (?:ms|s)\\b", _NUMBER.sub("\\\\d", literal)).replace(r"\d", r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")

    parts = []
    for line in expected:
        text = " ".join(line.split())
        if _ANY.fullmatch(text):
            parts.append(r"(?:[^\n]*\n)*?")
        elif text:
            parts.append(r"[^\n]*?".join(exactly(piece) for piece in _ANY.split(text)) + r"\n")
    return re.compile("".join(parts))
