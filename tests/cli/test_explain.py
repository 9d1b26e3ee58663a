"""``exporter fuse-bn --explain`` as a user sees it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_stored_graph_is_explained_like_a_fresh_one(digits: Path, run_cli: RunCli) -> None:
    """What was kept is drawn with its neighbours; the second time nothing is traced again, and the drawing is the same."""
    arguments = ("fuse-bn", "--keep", "stages.norm", "--explain")
    fresh = run_cli(*arguments, cwd=digits)
    written = (digits / ".exporter" / "digits.fused.pt2").stat().st_mtime_ns
    again = run_cli(*arguments, cwd=digits)
    assert fresh.returncode == again.returncode == 0
    assert (digits / ".exporter" / "digits.fused.pt2").stat().st_mtime_ns == written
    assert fresh.stdout == again.stdout
    assert "■ stages.norm " in fresh.stdout
    assert "--keep" in fresh.stdout.partition("help ")[2]


def test_json_holds_the_neighbours(digits: Path, run_cli: RunCli) -> None:
    """``--json`` carries the surroundings as data, for a folded BatchNorm with what took it; without ``--explain`` there are none."""
    done = run_cli("fuse-bn", "--json", "-q", "--explain=stem.*", cwd=digits)
    (item,) = json.loads(done.stdout)["explanations"]
    assert (item["batch_norm"], item["outcome"]) == ("stem.1", "folded")
    assert [one["module"] for one in item["neighbours"] if one["takes_it"]] == ["stem.0"]
    assert "explanations" not in json.loads(run_cli("fuse-bn", "--json", "-q", cwd=digits).stdout)


def test_a_name_that_does_not_exist_is_status_2(digits: Path, run_cli: RunCli) -> None:
    """A misspelt name, or a model that was written behind ``--explain``, is an error with near names and the remedy."""
    for text in ("stem.one", "model.py:build"):
        done = run_cli("fuse-bn", "--explain", text, cwd=digits)
        assert done.returncode == 2
        assert "E346" in done.stderr
        assert "stem.1" in done.stderr
        assert "--explain=PATTERN" in done.stderr


def test_terminals_without_unicode(digits: Path, run_cli: RunCli) -> None:
    """Where the terminal knows ASCII only, so is the drawing."""
    done = run_cli("fuse-bn", "--explain=stem.1", cwd=digits, env={"PYTHONIOENCODING": "ascii:replace", "COLUMNS": "60"})
    assert done.returncode == 0, done.stderr
    drawn = done.stdout.partition("\n\n")[2]
    assert "@ stem.0" in drawn
    assert "○" not in drawn
