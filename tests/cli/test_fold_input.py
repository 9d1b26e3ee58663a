"""``--fold-input`` as a user sees it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import onnx

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]
TEXT = "mean=0.3,std=0.6,scale=1/2"


def test_raw_pixels_are_compared_with_the_normalised_reference(digits: Path, run_cli: RunCli) -> None:
    """The check passes against the network with the normalisation in front, whose padded first convolution takes it in."""
    done = run_cli("fuse-bn", "--fold-input", TEXT, "--check", "--json", "-q", cwd=digits)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["outcome"] == "PASS"
    assert [entry["producer"] for entry in result["folded"] if entry["pattern"] == "bn+conv2d"] == ["stem.0"]


def test_the_file_says_so(digits: Path, run_cli: RunCli) -> None:
    """The ONNX file carries the normalisation in its metadata, and another one without it is another file."""
    assert run_cli("export-onnx", "--fold-input", TEXT, "-o", "raw.onnx", cwd=digits).returncode == 0
    assert run_cli("export-onnx", "-o", "plain.onnx", cwd=digits).returncode == 0
    raw, plain = ({entry.key: entry.value for entry in onnx.load(digits / name).metadata_props} for name in ("raw.onnx", "plain.onnx"))
    assert raw["exporter.input_normalised_inside"] == TEXT
    assert "exporter.input_normalised_inside" not in plain


def test_a_misspelt_text_is_status_2(digits: Path, run_cli: RunCli) -> None:
    """What is no normalisation is a matter of usage, with an example."""
    done = run_cli("fuse-bn", "--fold-input", "mena=0.5", cwd=digits)
    assert done.returncode == 2
    assert "E366" in done.stderr
    assert "scale=1/255" in done.stderr
