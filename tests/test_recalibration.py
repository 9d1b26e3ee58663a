"""BatchNorm statistics estimated anew on the samples, from the checkpoint to the baked file and its record."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import update_bn

from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig, load_config
from exporter.errors import ExporterError, LayoutError
from exporter.factories import build_model
from exporter.factories.recalibration import batches_of
from exporter.tensors import read_tensor
from exporter.weights import bake, load_weights
from exporter.workspace import Workspace

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def stale_checkpoint(digits: Path, *, half: bool = False) -> dict[str, torch.Tensor]:
    """Rewrite the fixture's checkpoint with statistics from before averaging began, as Lightning's SWA leaves them; return the average."""
    content = torch.load(digits / "digits.pt", weights_only=True)
    average = {name.removeprefix("module."): tensor for name, tensor in content["model_ema"].items() if name != "n_averaged"}
    for name, tensor in average.items():
        if name.endswith(STATISTICS[:2]):
            average[name] = torch.full_like(tensor, float(name.endswith("var")))
    if half:
        average = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in average.items()}
    callback = {"average_model_state": average, "n_averaged": 540}
    torch.save({"state_dict": content["model"], "callbacks": {"StochasticWeightAveraging": callback}}, digits / "digits.pt")
    return average


def workspace(digits: Path, **weights: object) -> Workspace:
    """Return the workspace of the fixture with settings for the weights."""
    return Workspace(load_config(digits / "exporter.toml", flags={"weights": {"bn_stats": "recalibrate", "allow_cold": True, **weights}}))


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file."""
    return {name: read_tensor(ref) for name, ref in open_checkpoint(path).root.items()}


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_recalibration_repairs_stale_statistics(digits: Path, half: bool) -> None:
    """The accuracy that stale statistics cost comes back; mean, variance and counter are those of torch's own update_bn, bit for bit."""
    average = stale_checkpoint(digits, half=half)
    work = workspace(digits, bn_batch=50)
    made = work.weights
    statistics = made.summary.batch_norm
    assert statistics is not None
    result = statistics.recalibration
    assert result is not None
    assert result.metric == "accuracy"
    assert result.metric_before is not None
    assert result.metric_after is not None
    assert result.metric_before < 0.5
    assert result.metric_after > 0.98
    assert result.output_drift["logits"] > 0.1
    assert (result.num_samples, result.batch, result.values_per_channel, len(result.layers)) == (360, 50, 360, 13)
    assert max(change.variance_change for change in result.layers) > 0.1

    samples = np.load(digits / "samples.npz")["image"]
    net = build_model(work.model, base=digits)
    net.load_state_dict(average)
    update_bn([torch.from_numpy(samples[rows]) for rows in batches_of(360, 50, 0)], net)
    wanted = net.state_dict()
    for name, array in tensors_of(made.path).items():
        expected = wanted[name] if name.endswith(STATISTICS) else average[name] if average[name].is_floating_point() else wanted[name]
        expected = expected.half() if half and expected.is_floating_point() else expected
        assert array.tobytes() == expected.contiguous().numpy().tobytes(), name
    net = work.module().eval()
    with torch.no_grad():
        right = net(torch.from_numpy(samples)).argmax(1).numpy() == np.load(digits / "samples.npz")["label"]
    assert right.mean() == result.metric_after


def test_the_file_says_what_was_done_to_it(digits: Path) -> None:
    """Metadata, lineage and record name the samples by number and digest, and what was made is read back as it was."""
    import hashlib

    stale_checkpoint(digits)
    made = workspace(digits).weights
    sha256 = hashlib.sha256((digits / "samples.npz").read_bytes()).hexdigest()
    said = f"recalibrated on 360 samples, sha256:{sha256}"
    assert made.provenance.lineage["bn_stats"] == open_checkpoint(made.path).metadata["exporter.bn_stats"] == said
    assert made.provenance.made_from["samples"] == f"sha256:{sha256}"
    assert "model.py" in made.provenance.made_from["model"]
    assert load_weights(made.path) == made
    assert not [path for path in made.path.parent.iterdir() if "unrecalibrated" in path.name]
    assert not [drift for drift in made.summary.drift if drift.name.endswith(STATISTICS[:2])]


def test_only_a_change_makes_it_again(digits: Path) -> None:
    """The same inputs are up to date; other samples, another batch size, other code of the model are not."""
    stale_checkpoint(digits)
    assert workspace(digits).weights

    def state(**settings: object) -> str:
        work = workspace(digits, **settings)
        assert work.weights
        return work.records[0].state

    assert state() == "up to date"
    assert state(bn_batch=32) == "made"
    assert state(bn_batch=32) == "up to date"
    (digits / "model.py").write_text((digits / "model.py").read_text() + "\n")
    assert state(bn_batch=32) == "made"
    held = dict(np.load(digits / "samples.npz"))
    np.savez(digits / "samples.npz", **{name: array[:300] for name, array in held.items()})
    assert state(bn_batch=32) == "made"


@pytest.mark.parametrize(("labels", "metric"), [("label", "accuracy"), ("", "")])
def test_samples_need_no_labels(digits: Path, labels: str, metric: str) -> None:
    """Without labels the drift of the outputs says what changed; with them the metric does so too. Few values are warned of."""
    stale_checkpoint(digits)
    held = dict(np.load(digits / "samples.npz"))
    kept = {name: array[:100] for name, array in held.items() if name == "image" or labels}
    np.savez(digits / "samples.npz", **kept)
    config = load_config(digits / "exporter.toml", flags={"weights": {"bn_stats": "recalibrate"}, "samples": {"labels": labels}})
    statistics = Workspace(config).weights.summary.batch_norm
    assert statistics is not None
    assert statistics.recalibration is not None
    assert statistics.recalibration.metric == metric
    assert statistics.recalibration.output_drift["logits"] > 0
    assert "hidden_bn had 100 values per channel" in statistics.warning
    assert "14%" in statistics.warning


def test_refusals_write_nothing(digits: Path, tmp_path: Path) -> None:
    """No samples, too few of them, samples of another shape, a bake without a model, weights without BatchNorm: errors that leave no file."""
    stale_checkpoint(digits)

    def refusal(**flags: dict[str, object]) -> str:
        config = load_config(digits / "exporter.toml", flags={"weights": {"bn_stats": "recalibrate"}, **flags})
        with pytest.raises(ExporterError) as caught:
            assert Workspace(config).weights
        assert not list((digits / ".exporter").glob("**/*")) or not [p for p in (digits / ".exporter").iterdir() if "baked" in p.name]
        return caught.value.code

    held = dict(np.load(digits / "samples.npz"))
    np.savez(digits / "one.npz", **{name: array[:1] for name, array in held.items()})
    np.savez(digits / "wide.npz", image=np.zeros((20, 3, 8, 8), np.float32))
    assert refusal(samples={"path": "one.npz"}) == "E324"
    assert refusal(samples={"path": "wide.npz", "labels": ""}) == "E621"
    text = (digits / "exporter.toml").read_text().replace('path = "samples.npz"', "").replace('labels = "label', 'labels = "')
    (digits / "exporter.toml").write_text(text)
    assert refusal() == "E615"
    with pytest.raises(LayoutError) as caught:
        bake(open_checkpoint(digits / "digits.pt"), BakeConfig(bn_stats="recalibrate"), tmp_path / "x.safetensors")
    assert caught.value.code == "E259"
    plain = {"state_dict": {"weight": torch.ones(2, 2)}, "state_dict_ema": {"weight": torch.zeros(2, 2)}}
    torch.save(plain, digits / "digits.pt")
    (digits / "plain.py").write_text("from torch import nn\n\ndef build():\n    return nn.Linear(2, 2, bias=False)\n")
    np.savez(digits / "rows.npz", x=np.ones((8, 2), np.float32))
    assert refusal(samples={"path": "rows.npz"}, model={"factory": "plain.py:build"}) == "E257"


def test_the_screen_says_what_changed(digits: Path, run_cli: RunCli) -> None:
    """bake-ema shows accuracy and drift before and after; without the option it warns and names it."""
    stale_checkpoint(digits)
    warned = run_cli("bake-ema", cwd=digits)
    assert warned.returncode == 0, warned.stderr
    assert "warning: the BatchNorm statistics were never updated" in warned.stdout
    assert "--bn-stats recalibrate" in warned.stdout
    done = run_cli("bake-ema", "--bn-stats", "recalibrate", cwd=digits)
    assert done.returncode == 0, done.stderr
    for text in ("estimated on 360 samples", "accuracy before", "after 99.", "outputs moved", "largest change"):
        assert text in done.stdout
    result = json.loads(run_cli("bake-ema", "--bn-stats", "recalibrate", "--json", cwd=digits).stdout)
    assert result["summary"]["batch_norm"]["recalibration"]["metric_after"] > 0.98
