"""The picture of the network: rows and lanes as SVG, in strips that stand side by side and are no taller than a printed page.

Colours, fonts and the shapes of the legend are the page's (``templates/style.css``). Each row has its full text as a tooltip.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import escape

from exporter.artifacts import Folded, Refusal, Report
from exporter.errors import printable
from exporter.report import units
from exporter.report.network import Lanes, NetworkRow, RowKind, lanes_of, rows_of

__all__ = ["LEGEND", "NetworkPicture", "network_picture"]

LEGEND: Final[tuple[tuple[RowKind, str], ...]] = (
    ("took", "took the BatchNorm behind it"),
    ("product", "convolution or linear layer"),
    ("back", "BatchNorm folded back, through what is between"),
    ("ahead", "folded ahead"),
    ("beside", "folded into the branch beside it"),
    ("kept", "kept"),
    ("join", "sum, concatenation"),
    ("other", "anything else"),
)

_PAGE_WIDTH: Final = 1024
_GAP: Final = 24
_ROW: Final = 20
_MAX_ROWS: Final = 46
"""Of a strip: 920 of the 1009 pixels of a printed page."""
_MIN_ROWS: Final = 16
_TEXT_WIDTH: Final = 250
_CHARACTERS: Final = 40
_LEAST: Final = 6
"""Characters for what follows an operator in its row; with less room it is left to the tooltip."""

_EDGE: Final = 8
_WIDE: Final = 10
"""Lanes; more of them stand closer."""


@dataclass(frozen=True, slots=True)
class NetworkPicture:
    """The picture.

    Attributes:
        strips: SVG elements, in reading order.
        keys: kind of row and its meaning, of those that occur.
    """

    title: str
    strips: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]


def network_picture(report: Report) -> NetworkPicture | None:
    """Return the picture of the network of a report; None where the report has no sketch of it."""
    if report.sketch is None or not report.sketch.nodes:
        return None
    rows = rows_of(report.sketch, report.folded, report.refusals)
    lanes = lanes_of(rows)
    pitch = 11 if max(lanes.lane) < _WIDE else 7
    widest = _EDGE + (max(lanes.lane) + 1) * pitch + 4 + _TEXT_WIDTH
    num_columns = max(1, (_PAGE_WIDTH + _GAP) // (widest + _GAP))
    num_rows = min(_MAX_ROWS, max(_MIN_ROWS, math.ceil(len(rows) / num_columns)))
    num_strips = math.ceil(len(rows) / num_rows)
    if num_strips > num_columns:
        num_strips = num_columns * math.ceil(num_strips / num_columns)
    num_rows = math.ceil(len(rows) / num_strips)
    strips = tuple(
        _strip(rows, lanes, range(start, min(start + num_rows, len(rows))), pitch, f"{number} of {num_strips}")
        for number, start in enumerate(range(0, len(rows), num_rows), start=1)
    )
    kinds = {row.kind for row in rows}
    return NetworkPicture("The network and its BatchNorm", strips, tuple(key for key in LEGEND if key[0] in kinds))


def _strip(rows: Sequence[NetworkRow], lanes: Lanes, shown: range, pitch: int, part: str) -> str:
    """Return the rows ``shown`` as one SVG element; all are as wide as the widest."""
    own = [lane for place, lane in enumerate(lanes.lane[: shown.stop]) if place in shown or lanes.last_reader[place] >= shown.start]
    text_x, width = (_EDGE + (max(found) + 1) * pitch + 4 for found in (own, lanes.lane))
    width, height = width + _TEXT_WIDTH, len(shown) * _ROW + 2 * _EDGE
    name = f"network-{part.partition(' ')[0]}"
    head = (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" class="strip" role="img" '
        f'aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">The network, part {part}</title><desc id="{name}-desc">{escape(printable(_description(rows, shown)))}</desc>'
    )
    tops = {place: _EDGE + (place - shown.start) * _ROW for place in shown}
    bands = (f'<rect class="band" x="0" y="{y}" width="{width}" height="{_ROW}"></rect>' for place, y in tops.items() if rows[place].kind == "kept")
    lines = f'<path class="lanes" d="{_edges(rows, lanes, shown, pitch, height)}"></path>'
    marks = (_row(rows[place], _EDGE + lanes.lane[place] * pitch + pitch // 2, y + _ROW // 2, text_x) for place, y in tops.items())
    return f"{head}{''.join(bands)}{lines}{''.join(marks)}</svg>"


def _edges(rows: Sequence[NetworkRow], lanes: Lanes, shown: range, pitch: int, height: int) -> str:
    """Return all lines of a strip as one path: each value runs down its lane, and bends to the rows that stand in others."""

    def x(place: int) -> int:
        return _EDGE + lanes.lane[place] * pitch + pitch // 2

    def y(place: int) -> int:
        return _EDGE + (place - shown.start) * _ROW + _ROW // 2

    readers: dict[int, list[int]] = {}
    for place, row in enumerate(rows[: shown.stop]):
        for read in row.reads:
            readers.setdefault(read, []).append(place)
    parts: list[str] = []
    for source in range(shown.stop):
        last = lanes.last_reader[source]
        if last < shown.start or last == source:
            continue
        top = y(source) if source in shown else 0
        here = [reader for reader in readers.get(source, ()) if reader in shown]
        ends = [y(reader) if lanes.lane[reader] == lanes.lane[source] else y(reader) - _ROW for reader in here]
        bottom = height if last >= shown.stop else max(ends, default=top)
        if bottom > top:
            parts.append(f"M{x(source)} {top}V{bottom}")
        for reader in here:
            if lanes.lane[reader] != lanes.lane[source]:
                start, end = max(y(reader) - _ROW, 0), y(reader)
                middle = (start + end) // 2
                parts.append(f"M{x(source)} {start}C{x(source)} {middle + 3} {x(reader)} {middle - 3} {x(reader)} {end}")
    return "".join(parts)


def _row(row: NetworkRow, x: int, y: int, text_x: int) -> str:
    told = _words(row)
    words = "".join(f'<tspan class="{kind}">{escape(text)}</tspan>' if kind else str(escape(text)) for kind, text in told)
    width = sum(_advance(c) for _, text in told for c in text)
    squeezed = f' textLength="{_TEXT_WIDTH - 4}" lengthAdjust="spacingAndGlyphs"' if width > _TEXT_WIDTH - 4 else ""
    tooltip = escape(printable(_tooltip(row), keep_newlines=True))
    return f'<g class="{row.kind}"><title>{tooltip}</title>{_shape(row.kind, x, y)}<text x="{text_x}" y="{y + 4}"{squeezed}>{words}</text></g>'


def _advance(character: str) -> float:
    """Return about how wide a character is at most, in pixels of a font of 11."""
    if unicodedata.east_asian_width(character) in "WF":
        return 11.0
    return 10.0 if character in "mwMW@%" else 8.0 if character.isupper() else 6.2


def _shape(kind: RowKind, x: int, y: int) -> str:
    if kind == "kept":
        return f'<rect class="mark" x="{x - 5}" y="{y - 5}" width="10" height="10"></rect>'
    if kind in {"took", "product"}:
        return f'<circle class="mark" cx="{x}" cy="{y}" r="4.5"></circle>'
    if kind in {"join", "other"}:
        return f'<circle class="mark" cx="{x}" cy="{y}" r="3"></circle>'
    points = {
        "back": f"M{x - 5} {y + 4}h10l-5 -9z",
        "ahead": f"M{x - 5} {y - 4}h10l-5 9z",
        "beside": f"M{x} {y - 6}l6 6l-6 6l-6 -6z",
        "input": f"M{x - 4} {y - 3}h8v6h-8z",
    }
    return f'<path class="mark" d="{points[kind]}"></path>'


def _words(row: NetworkRow) -> list[tuple[str, str]]:
    """Return the texts of a row with the class of each, together no longer than fits."""
    node, end = row.node, ["output"] if row.is_output else []
    if row.kind in {"join", "other"}:
        return [("quiet", _listed([units.shortened(node.kind.rstrip("_"), _CHARACTERS // 2), *row.behind, *end], _CHARACTERS))]
    rest = [("bn", f"+ {units.shortened(_short(item.batch_norm, node.module), 14)}") for item in row.taken[:2]]
    name = node.module or node.kind
    room = _CHARACTERS - sum(len(text) + 2 for _, text in rest)
    left = room - len(printable(name)) - 2
    if end or (row.behind and left >= _LEAST):
        rest.append(("quiet", _listed([*row.behind, *end] if left >= _LEAST else end, max(left, _LEAST))))
        room -= len(rest[-1][1]) + 2
    name = units.shortened(name, max(room, 10))
    return [("", name), *((kind, f"  {text}") for kind, text in rest)]


def _listed(texts: Sequence[str], length: int) -> str:
    """Return as many of ``texts`` as fit into ``length``, with dots for the others."""
    shown = ""
    for number, text in enumerate(texts):
        longer = f"{shown} · {text}" if shown else units.shortened(text, length)
        if len(longer) + 2 * (number < len(texts) - 1) > length:
            return f"{shown} …" if shown else longer
        shown = longer
    return shown


def _short(name: str, beside: str) -> str:
    """Return ``bn1`` for ``layer1.0.bn1`` beside ``layer1.0.conv1``, ``bn 1`` for a number."""
    stem = beside.rpartition(".")[0]
    short = name.removeprefix(f"{stem}.") if stem else name
    return f"bn {short}" if short.isdigit() else short


def _tooltip(row: NetworkRow) -> str:
    facts = [row.node.label + (f", {row.node.shape}" if row.node.shape else "")]
    facts += [f"took {item.batch_norm} ({item.num_channels} channels, largest scale {item.max_scale:.3g})" for item in row.taken]
    if isinstance(row.fate, Folded):
        facts.append(f"folded into {row.fate.producer} ({row.fate.pattern}, {row.fate.num_channels} channels)")
    elif isinstance(row.fate, Refusal):
        facts.append(f"kept: {row.fate.reason.value}" + (f"; {row.fate.detail}" if row.fate.detail else ""))
    facts += [f"called at {row.node.source}"] if row.node.source else []
    facts += [f"then {', '.join(row.behind)}"] if row.behind else []
    facts += ["an output of the network"] if row.is_output else []
    return "\n".join(facts)


def _description(rows: Sequence[NetworkRow], shown: range) -> str:
    """Return what a strip shows, for those who do not see it."""
    part = [rows[place] for place in shown]
    folded = sum(len(row.taken) for row in part) + sum(isinstance(row.fate, Folded) for row in part)
    kept = [row.node.module for row in part if row.kind == "kept"]
    first, last = (row.node.module or row.node.kind for row in (part[0], part[-1]))
    said = f"{len(part)} rows from {first} to {last}: {folded} BatchNorm folded, {len(kept)} kept"
    return f"{said}{': ' if kept else ''}{', '.join(kept)}. The table holds every BatchNorm."
