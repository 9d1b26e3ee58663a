"""``--select best``: every copy of the weights is measured, the table is shown, and the best is baked."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter.artifacts import Selection
from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import LayoutError, SampleError
from exporter.selection import select
from exporter.tensors import read_tensor
from exporter.weights import bake

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]

METRIC = """
import numpy as np

def negative_loss(outputs, labels):
    shifted = outputs.astype(np.float64) - outputs.max(1, keepdims=True)
    return float((shifted[np.arange(len(labels)), labels] - np.log(np.exp(shifted).sum(1))).mean())
"""


def spoil(digits: Path, *, key: str, scale: float) -> None:
    """Make one copy of the fixture's weights worse."""
    content = torch.load(digits / "digits.pt")
    for name, tensor in content[key].items():
        if tensor.is_floating_point() and tensor.ndim > 1:
            content[key][name] = tensor * scale
    torch.save(content, digits / "digits.pt")


@pytest.mark.parametrize(("worse", "chosen"), [("model", "model_ema"), ("model_ema", "raw")])
def test_the_better_copy_is_baked(digits: Path, run_cli: RunCli, worse: str, chosen: str) -> None:
    """The copy with the larger metric is written, table and samples are shown, and the artefact records them."""
    spoil(digits, key=worse, scale=-1.0)
    (digits / "metrics.py").write_text(METRIC)
    done = run_cli("bake-ema", "--select", "best", "--metric", "metrics.py:negative_loss", "--json", cwd=digits)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)["summary"]
    selection = summary["selection"]
    assert (selection["chosen"], selection["metric"], set(selection["values"])) == (chosen, "metrics.py:negative_loss", {"model_ema", "raw"})
    assert selection["values"][chosen] == max(selection["values"].values())
    assert selection["num_samples"] == len(np.load(digits / "samples.npz")["label"])
    assert summary["choice"] == ("raw" if chosen == "raw" else f"ema:{chosen}")
    assert "which it was chosen on" in done.stderr
    assert "   chosen" in done.stderr
    baked = open_checkpoint(digits / ".exporter" / "digits.baked.safetensors")
    assert baked.metadata["exporter.selected"].startswith("metrics.py:negative_loss on ")
    key = "model" if chosen == "raw" else "model_ema"
    name = "stem.0.weight" if chosen == "raw" else "module.stem.0.weight"
    np.testing.assert_array_equal(read_tensor(baked.root["stem.0.weight"]), torch.load(digits / "digits.pt")[key][name].numpy())
    assert not list((digits / ".exporter").glob(".*selecting*")), "nothing is left of the copies that were measured"
    again = run_cli("bake-ema", "--select", "best", "--metric", "metrics.py:negative_loss", "--json", cwd=digits)
    assert json.loads(again.stdout) == json.loads(done.stdout)


def test_ties_go_to_the_average_then_to_the_order_of_the_file() -> None:
    """Of equal values the first wins, and the averages come first; a copy that cannot be baked is left out with its reason."""

    def measure(name: str) -> tuple[str, float]:
        if name == "cold":
            raise LayoutError("E211", "the average is cold")
        return "accuracy", {"a": 0.5, "b": 0.7, "c": 0.7, "raw": 0.7, "nan": float("nan")}[name]

    found = select(["a", "b", "cold", "nan", "c", "raw"], measure, num_samples=3)
    values = {"a": 0.5, "b": 0.7, "c": 0.7, "raw": 0.7}
    assert found == Selection("accuracy", 3, values, "b", {"cold": "E211: the average is cold", "nan": "the metric is not a number"})
    with pytest.raises(LayoutError, match="E252"):
        select(["cold", "nan"], measure, num_samples=3)


@pytest.mark.parametrize(
    ("arguments", "change", "status", "text"),
    [
        pytest.param(["--weights", "raw"], "", 4, "E251", id="named and selected"),
        pytest.param(["--ema", "model_ema"], "", 4, "E251", id="an average named and selected"),
        pytest.param([], 'path = "samples.npz"', 4, "E620", id="no samples"),
        pytest.param([], 'labels = "label"', 4, "E620", id="no labels"),
        pytest.param([], 'factory = "model.py:build"', 2, "E706", id="no model"),
        pytest.param(["--metric", "none.py:mine"], "", 4, "E635", id="no such metric"),
    ],
)
def test_what_selecting_needs_is_said(digits: Path, run_cli: RunCli, arguments: list[str], change: str, status: int, text: str) -> None:
    """Without model, labelled samples or metric, or with the weights named besides: one message, and nothing is written."""
    config = digits / "exporter.toml"
    lines = [line for line in config.read_text().splitlines() if not change or not line.startswith(change)]
    config.write_text("\n".join(lines))
    done = run_cli("bake-ema", "--select", "best", *arguments, cwd=digits)
    assert (done.returncode, text in done.stderr) == (status, True), done.stderr
    assert not list((digits / ".exporter").glob("*"))


def test_a_bake_by_itself_does_not_select(digits: Path, tmp_path: Path) -> None:
    """Baking has neither model nor samples: the setting is refused, not ignored."""
    with pytest.raises(LayoutError, match="E253"):
        bake(open_checkpoint(digits / "digits.pt"), BakeConfig(select="best"), tmp_path / "out.safetensors")


def test_sample_errors_are_the_programs_own() -> None:
    """A metric that cannot be computed stops the selection: it is no reason to leave a copy out."""

    def measure(name: str) -> tuple[str, float]:
        raise SampleError("E634", f"the metric could not be computed for {name}")

    with pytest.raises(SampleError, match="E634"):
        select(["a"], measure, num_samples=1)
