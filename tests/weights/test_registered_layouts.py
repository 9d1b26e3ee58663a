"""Layouts of other distributions: a wheel is made and installed here, and its layout is asked."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from exporter.artifacts import Digest
from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import LayoutError
from exporter.weights import read_layout, weights_key

GOOD = """
from exporter.weights.layout import Average, Layout, Match
from exporter.weights.state_dicts import as_weights, child

def read(checkpoint):
    average = as_weights(child(checkpoint.root, "polyak"), "polyak")
    raw = as_weights(child(checkpoint.root, "current"), "current")
    return Match("ours", (Average("polyak", average),), raw) if average is not None and raw is not None else None

LAYOUT = Layout("ours", ("polyak",), read)
"""
BAD = {
    "no module": ("import that_does_not_exist", "that_does_not_exist"),
    "no such name": ("OTHER = 1", "LAYOUT"),
    "no layout": ("LAYOUT = 1", "int"),
    "no match": ("from exporter.weights.layout import Layout\nLAYOUT = Layout('x', (), lambda checkpoint: {})", "dict"),
}
CONTENT = {"current": {"a.weight": torch.ones(2)}, "polyak": {"a.weight": torch.zeros(2)}}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Make a wheel of one module, install it into a folder of its own with pip, and put that folder on the path."""

    def install_module(code: str) -> Path:
        wheel = tmp_path / "our_layouts-1.2-py3-none-any.whl"
        info = "our_layouts-1.2.dist-info"
        files = {
            "our_layouts.py": textwrap.dedent(code),
            f"{info}/METADATA": "Metadata-Version: 2.1\nName: our-layouts\nVersion: 1.2\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/entry_points.txt": "[exporter.layouts]\nours = our_layouts:LAYOUT\n",
        }
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
            archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))
        folder = tmp_path / "installed"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check", "--target", folder]
        subprocess.run([*map(str, command), str(wheel)], check=True, capture_output=True)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, "our_layouts", raising=False)
        return folder

    return install_module


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint that no built-in layout knows."""
    torch.save(CONTENT, tmp_path / "theirs.pt")
    return tmp_path / "theirs.pt"


def test_an_installed_layout_is_asked(install: Callable[[str], Path], path: Path, repository: Path) -> None:
    """Unknown before, known once the distribution is installed, in this process and in the installed command alike."""
    assert read_layout(open_checkpoint(path)).layout == "unknown"
    before = weights_key(Digest("0" * 64), BakeConfig())
    folder = install(GOOD)
    reading = read_layout(open_checkpoint(path))
    assert (reading.layout, [c.name for c in reading.candidates], reading.raw_at) == ("ours", ["polyak"], "current")
    assert "polyak" in reading.looked_at
    assert weights_key(Digest("0" * 64), BakeConfig()) != before
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from exporter.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), "inspect", "--json", str(path)], cwd=repository, capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout)["layout"]["layout"] == "ours", done.stderr


@pytest.mark.parametrize("case", BAD)
def test_a_layout_that_cannot_be_used_is_an_error(case: str, install: Callable[[str], Path], path: Path) -> None:
    """A broken distribution is named with its version and what is wrong; it is never skipped."""
    code, found = BAD[case]
    install(code)
    with pytest.raises(LayoutError, match="registered layout") as refused:
        read_layout(open_checkpoint(path))
    assert refused.value.code == "E224"
    assert refused.value.facts["distribution"] == "our-layouts 1.2"
    assert found in str(refused.value.facts["found"])


def test_the_example_of_the_documentation(install: Callable[[str], Path], repository: Path, tmp_path: Path) -> None:
    """The layout that docs/adding-a-layout.md shows works as it stands."""
    page = (repository / "docs" / "adding-a-layout.md").read_text(encoding="utf-8")
    install(page.partition("```python\n")[2].partition("```")[0])
    torch.save({"current": {"a": torch.ones(2)}, "polyak": {"weights": {"a": torch.zeros(2)}, "updates": 9000}}, tmp_path / "made.pt")
    (candidate,) = read_layout(open_checkpoint(tmp_path / "made.pt")).candidates
    assert (candidate.name, candidate.updates, candidate.decay, candidate.state) == ("polyak", 9000, 0.999, "settled")
