"""Chromium without a head and without a network: opens a page from the disk, measures it and takes its picture."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

__all__ = ["find_browser", "measure", "photograph"]

_NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_NAMED: Final = os.environ.get("EXPORTER_BROWSER", "")
"""Read on import: while a test runs, settings of the shell are hidden."""
_FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--proxy-server=127.0.0.1:9",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
_SCHEMES: Final = {"dark": 0, "light": 1}

# Stands beside the page and looks into it, so that the page itself is measured exactly as it was written.
_RULER: Final = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
<iframe id="page" src="{page}" style="border:0;width:{width}px;height:2000px"></iframe><pre id="found"></pre>
<script>
const frame = document.getElementById("page");
const box = (item) => {{ const b = item.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; }};
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  const pictures = [...page.querySelectorAll("svg")].map((svg) => ({{
    title: svg.querySelector("title").textContent,
    kind: svg.getAttribute("class") || "",
    colours: [...svg.querySelectorAll(".mark")].map((mark) => frame.contentWindow.getComputedStyle(mark).fill),
    box: box(svg),
    texts: [...svg.querySelectorAll("text")].map((text) => [text.textContent, ...box(text)]),
    shapes: svg.querySelectorAll("path, use, rect, circle").length,
    font: svg.querySelector("text") ? frame.contentWindow.getComputedStyle(svg.querySelector("text")).fontFamily : "",
  }}));
  document.getElementById("found").textContent = JSON.stringify({{
    pictures,
    width: root.clientWidth,
    scroll_width: root.scrollWidth,
    height: root.scrollHeight,
    fetched: frame.contentWindow.performance.getEntriesByType("resource").map((entry) => entry.name),
    rows: [...page.querySelectorAll("table.folds tbody tr")].filter((row) => row.getClientRects().length > 0).map((row) => row.className),
    colour: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
  }});
}};
</script>"""


def find_browser() -> str:
    """Return the browser's path; without one, skip the test, or fail it where EXPORTER_REQUIRE_BROWSER is 1."""
    for name in (_NAMED, *_NAMES):
        path = shutil.which(name) if name else None
        if path:
            return path
    reason = f"no browser: looked for {', '.join(_NAMES)} (EXPORTER_BROWSER names another)"
    if os.environ.get("EXPORTER_REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def measure(page: Path, folder: Path, *, width: int, scheme: str = "light") -> dict[str, Any]:
    """Return the boxes of every picture and of its texts, in CSS pixels, at a page width of ``width``."""
    ruler = folder / f"ruler-{width}-{scheme}.html"
    ruler.write_text(_RULER.format(page=page.resolve().as_uri(), width=width), encoding="utf-8")
    dumped = _run(ruler, folder, scheme, "--allow-file-access-from-files", "--virtual-time-budget=10000", "--dump-dom").stdout
    found = re.search(r'<pre id="found">(.*?)</pre>', dumped, flags=re.DOTALL)
    assert found, dumped[-2000:]
    assert found[1], "the page did not load"
    measured: dict[str, Any] = json.loads(html.unescape(found[1]))
    return measured


def photograph(page: Path, folder: Path, *, width: int, height: int, scheme: str = "light") -> Path:
    """Return a PNG of the page itself."""
    target = folder / f"{page.stem}-{width}-{scheme}.png"
    _run(page, folder, scheme, f"--window-size={width},{height}", f"--screenshot={target}")
    assert target.is_file()
    return target


def _run(page: Path, folder: Path, scheme: str, *flags: str) -> subprocess.CompletedProcess[str]:
    profile = folder / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    settings = (f"--user-data-dir={profile}", f"--blink-settings=preferredColorScheme={_SCHEMES[scheme]}")
    command = [find_browser(), *_FLAGS, *settings, *flags, page.resolve().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "HOME": str(folder)})
