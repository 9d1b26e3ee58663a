"""What every benchmark here shares: a table, and a line that says where the numbers were taken."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

__all__ = ["print_machine", "print_table"]


def print_machine(*libraries: str) -> None:
    """Print Python, the machine, its load and the versions of ``libraries``."""
    found = []
    for library in libraries:
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            found.append(f"{library} not installed")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"Python {platform.python_version()} · {platform.machine()} · {os.cpu_count()} CPUs · load {load} · {' · '.join(found)}\n")


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table; numbers are right-aligned."""
    texts = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(header), *texts]) for column in range(len(header))]
    print("| " + " | ".join(name.ljust(width) for name, width in zip(header, widths, strict=True)) + " |")
    print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    for row, cells in zip(rows, texts, strict=True):
        aligned = [t.rjust(w) if isinstance(c, (int, float)) else t.ljust(w) for c, t, w in zip(row, cells, widths, strict=True)]
        print("| " + " | ".join(aligned) + " |")
