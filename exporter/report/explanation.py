"""The surroundings of a BatchNorm as text: what makes its data above it, what reads it below, and what stood in the way.

Data flow downwards. A chain stands in one column; where several producers come together or several readers part, each has a branch.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from exporter.artifacts import Explanation, Neighbour
from exporter.errors import printable
from exporter.report import units

__all__ = ["render_explanations"]

_MARKS: Final = {"node": "○", "culprit": "✗", "taker": "●", "kept": "■", "folded": "□", "output": "▷"}
_NOTES: Final = {"culprit": "in the way", "taker": "takes it", "kept": "kept", "folded": "folded"}
_PLAIN: Final = {
    "○": "o",
    "✗": "x",
    "●": "@",
    "■": "#",
    "□": "=",
    "▷": ">",
    "├": "|",
    "┌": ",",
    "└": "`",
    "│": "|",
    "─": "-",
    "⋮": ":",
    "…": "...",
    "·": "-",
    "→": "->",
}
_LEAST_NAME, _USUAL_NAME = 16, 28
_MARGIN: Final = "    "


@dataclass(frozen=True, slots=True)
class _Row:
    """One operator, and the branches that it hangs on."""

    branches: str
    mark: str
    name: str = ""
    kind: str = ""
    shape: str = ""
    notes: tuple[str, ...] = ()
    source: str = ""

    def said(self, *, has_sources: bool) -> str:
        """Return what stands behind the columns."""
        return " · ".join((*self.notes, self.source) if has_sources and self.source else self.notes)


def render_explanations(explanations: Sequence[Explanation], *, width: int = 100, plain: bool = False) -> list[str]:
    """Return a drawing of each BatchNorm with the reason and what can be done about it.

    Args:
        explanations: what to draw, in order.
        width: columns of the terminal; where they are few, lines of code and shapes are left out, and names lose their middle.
        plain: use ASCII only.
    """
    lines: list[str] = []
    for item in explanations:
        rows = _Tree(item).rows() if item.neighbours else []
        lines += ["", f"{units.shortened(item.batch_norm, width - 10)}   {item.outcome}"]
        lines += _table(rows, width)
        lines += _said("why", item.why, width)
        if item.remedy:
            lines += _said("help", item.remedy, width)
    if not explanations:
        lines = ["", "nothing was kept, so there is nothing to explain; --explain=PATTERN draws folded BatchNorms too"]
    escaped = [printable(line.rstrip()) for line in lines]
    return [_plain(line) for line in escaped] if plain else escaped


def _said(label: str, text: str, width: int) -> list[str]:
    lead = f"{_MARGIN}{label:<5}"
    return textwrap.wrap(printable(text), max(width, 40), initial_indent=lead, subsequent_indent=" " * len(lead), break_on_hyphens=False)


def _plain(line: str) -> str:
    return "".join(_PLAIN.get(c, c if c.isascii() else "?") for c in line)


def _table(rows: Sequence[_Row], width: int) -> list[str]:
    """Return the rows with their columns aligned; names give way first."""
    lead = max((len(row.branches) for row in rows), default=0)
    kinds, shapes = (max((len(getattr(row, column)) for row in rows), default=0) for column in ("kind", "shape"))
    names = max((len(printable(row.name)) for row in rows), default=0)
    room, has_sources = 0, False
    for has_sources in (True, False):
        notes = max((len(row.said(has_sources=has_sources)) for row in rows), default=0)
        room = width - len(_MARGIN) - lead - 2 - kinds - notes - 6
        if room - shapes - 3 >= min(names, _USUAL_NAME):
            break
    has_shapes = room - shapes - 3 >= min(names, _LEAST_NAME)
    room -= shapes + 3 if has_shapes else 0
    name_width = min(names, max(room, _LEAST_NAME))
    lines = []
    for row in rows:
        name = units.shortened(row.name, name_width + lead - len(row.branches))
        text = f"{row.branches}{row.mark} {name}"
        cells = [f"{text:<{lead + 2 + name_width}}", f"{row.kind:<{kinds}}", f"{row.shape:<{shapes}}", row.said(has_sources=has_sources)]
        lines.append(_MARGIN + "   ".join(cells if has_shapes else (*cells[:2], cells[3])))
    return lines


@dataclass(slots=True)
class _Tree:
    """Draws one explanation from the BatchNorm outwards."""

    item: Explanation
    drawn: set[int] = field(default_factory=set)

    def rows(self) -> list[_Row]:
        """Return the rows from the first producer to the last reader."""
        neighbours = self.item.neighbours
        middle = next(place for place, one in enumerate(neighbours) if one.place == "itself")
        above = [_turned(row) for row in reversed(self._above(middle, ""))]
        below = self._below(middle, "")
        return [*above, self._row(middle, ""), *below]

    def _above(self, place: int, branches: str) -> list[_Row]:
        """Return the producers of ``place`` and theirs, the nearest first."""
        one = self.item.neighbours[place]
        rows: list[_Row] = []
        producers = [other for other in one.reads if self.item.neighbours[other].place == "before"]
        for number, other in enumerate(reversed(producers)):
            is_chain, is_last = len(producers) == 1, number == len(producers) - 1
            inner = branches if is_chain else branches + ("  " if is_last else "│ ")
            if other not in self.drawn:
                rows += self._readers_beside(other, branches if is_chain else f"{branches}│ ")
            rows.append(self._row(other, branches if is_chain else branches + ("└─" if is_last else "├─")))
            if other not in self.drawn:
                self.drawn.add(other)
                rows += self._above(other, inner)
        return rows

    def _readers_beside(self, place: int, branches: str) -> list[_Row]:
        """Return the other readers of a producer, as branches of the way from it to the BatchNorm."""
        others = [number for number, one in enumerate(self.item.neighbours) if one.place == "beside" and place in one.reads]
        rows = [self._row(number, f"{branches}├─") for number in reversed(others)]
        if self.item.neighbours[place].is_output:
            rows.append(_Row(f"{branches}├─", _MARKS["output"], "output"))
        return rows

    def _below(self, place: int, branches: str) -> list[_Row]:
        """Return the readers of ``place`` and theirs."""
        neighbours = self.item.neighbours
        readers: list[int | None] = [number for number, one in enumerate(neighbours) if one.place == "behind" and place in one.reads]
        if neighbours[place].is_output:
            readers.append(None)
        rows: list[_Row] = []
        for number, other in enumerate(readers):
            is_chain, is_last = len(readers) == 1, number == len(readers) - 1
            own = branches if is_chain else branches + ("└─" if is_last else "├─")
            if other is None:
                rows.append(_Row(own, _MARKS["output"], "output"))
                continue
            rows.append(self._row(other, own))
            if other not in self.drawn:
                self.drawn.add(other)
                rows += self._below(other, branches if is_chain else branches + ("  " if is_last else "│ "))
        return rows

    def _row(self, place: int, branches: str) -> _Row:
        one = self.item.neighbours[place]
        role = self._role(one)
        notes = [_NOTES[role]] if role in _NOTES else []
        is_end = (
            not any(other.place == one.place and place in other.reads for other in self.item.neighbours) if one.place == "behind" else not one.reads
        )
        if one.num_hidden and not is_end:
            notes.append(f"{one.num_hidden} more {'before' if one.place == 'before' else 'behind'} it")
        kind = one.kind.rstrip("_") or one.kind
        return _Row(
            branches,
            _MARKS[role],
            one.module or kind,
            kind if one.part != "input" else "",
            one.shape,
            tuple(notes),
            one.source if role in _NOTES else "",
        )

    def _role(self, one: Neighbour) -> str:
        if one.place == "itself":
            return self.item.outcome
        return "culprit" if one.is_culprit else "taker" if one.takes_it else "node"


def _turned(row: _Row) -> _Row:
    """Return a row as it looks where the branches come from above."""
    return _Row(row.branches.replace("└", "┌"), row.mark, row.name, row.kind, row.shape, row.notes, row.source)
