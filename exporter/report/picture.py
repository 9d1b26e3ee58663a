"""A matplotlib figure as inline SVG that takes its colours from the page.

Figures are drawn in marker colours; each marker becomes a custom property of the page, so that one picture serves light, dark and print.
Text stays text. Identifiers carry the name of the picture, so that several pictures can stand on one page. No pyplot, no display, no network.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from exporter.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

__all__ = ["ACCENT", "FAIL", "GRID", "INK", "MUTED", "REFERENCE", "Picture", "draw"]

# marker colour -> what it becomes; nothing else on a figure has these values
INK: Final = "#010101"
MUTED: Final = "#010102"
GRID: Final = "#010103"
ACCENT: Final = "#010104"
REFERENCE: Final = "#010105"
FAIL: Final = "#010106"
_THEME: Final = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    ACCENT: "var(--accent)",
    REFERENCE: "var(--reference)",
    FAIL: "var(--fail)",
}
_STYLE: Final = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.0,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
}
_MARKER: Final = re.compile("|".join(_THEME), re.IGNORECASE)
_FONT_SIZE: Final = re.compile(r"\d+(?:\.\d+)?px")
_NO_METADATA: Final = {"Date": None, "Creator": None, "Format": None, "Type": None}
_POINTS_PER_INCH: Final = 72


@dataclass(frozen=True, slots=True)
class Picture:
    """An inline picture.

    Attributes:
        name: unique on the page; letters, digits and ``-``.
        title: what it shows, also read out by a screen reader.
        description: the same facts in words.
        svg: markup without namespaces, to stand inside HTML.
        keys: legend: class of the page (``candidate``, ``reference``, ``required``, ...) -> text.
    """

    name: str
    title: str
    description: str
    svg: str
    keys: tuple[tuple[str, str], ...] = ()


def draw(
    paint: Callable[[Axes], None],
    *,
    name: str,
    title: str,
    description: str,
    keys: tuple[tuple[str, str], ...] = (),
    width_pt: float = 400.0,
    height_pt: float = 190.0,
) -> Picture:
    """Let ``paint`` draw on fresh axes and return the picture; equal calls give equal bytes."""
    style: Any = {**_STYLE, "svg.hashsalt": name}  # a plain mapping: the names are matplotlib's
    # The page's own fonts show the text: that matplotlib's font lacks a glyph is of no consequence.
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        size_inch = (width_pt / _POINTS_PER_INCH, height_pt / _POINTS_PER_INCH)
        figure = Figure(figsize=size_inch, dpi=_POINTS_PER_INCH, layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02))
        axes = figure.add_subplot()
        paint(axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata=_NO_METADATA, transparent=True)
    svg = _inline(buffer.getvalue(), name=name, title=title, description=description)
    return Picture(name, title, description, svg, keys)


def _inline(content: bytes, *, name: str, title: str, description: str) -> str:
    root = ET.fromstring(content)  # noqa: S314 - matplotlib wrote it a moment ago
    renamed = {item.get("id", ""): f"{name}-{item.get('id')}" for item in root.iter() if item.get("id")}
    for item in root.iter():
        item.tag = item.tag.rpartition("}")[2]
        item.attrib = {key.rpartition("}")[2]: _value(value, renamed) for key, value in item.attrib.items()}
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in {"metadata", "style"} or (child.tag == "defs" and _is_only_style(child))]:
            parent.remove(child)
    view_box = root.get("viewBox", "")
    root.attrib = {"viewBox": view_box, "role": "img", "aria-labelledby": f"{name}-title {name}-desc"}
    heading, text = ET.Element("title", {"id": f"{name}-title"}), ET.Element("desc", {"id": f"{name}-desc"})
    heading.text, text.text = printable(title), printable(description)
    root[:0] = [heading, text]
    return ET.tostring(root, encoding="unicode", short_empty_elements=False)


def _is_only_style(defs: ET.Element) -> bool:
    return all(child.tag == "style" for child in defs)


def _value(value: str, renamed: dict[str, str]) -> str:
    value = _MARKER.sub(lambda found: _THEME[found[0].lower()], value)
    if value.startswith("#") and value[1:] in renamed:
        return f"#{renamed[value[1:]]}"
    if value in renamed:
        return renamed[value]
    value = re.sub(r"url\(#([^)]+)\)", lambda found: f"url(#{renamed.get(found[1], found[1])})", value)
    if "font" in value and ":" in value:
        value = "; ".join(filter(None, map(_without_family, value.split(";"))))
    return value


def _without_family(declaration: str) -> str:
    """Return a declaration of a style without the family of fonts, which is the page's to choose."""
    name, _, text = declaration.strip().partition(":")
    if name == "font-family":
        return ""
    if name == "font":
        size = _FONT_SIZE.search(text)
        return f"font-size: {size[0]}" if size else ""
    return declaration.strip()
