"""Averages of several checkpoints, and our own output as input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from exporter.artifacts import Weights
from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import CheckpointError, LayoutError
from exporter.tensors import read_tensor
from exporter.weights import TORCH_SUFFIXES, TrainerForm, average, bake, load_weights, read_layout, save_torch


def network(seed: int) -> nn.Sequential:
    """Return a network with BatchNorm that has seen data."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    for _ in range(seed + 1):
        model(torch.randn(8, 4))
    return model


def saved(folder: Path, *models: nn.Module) -> list[Path]:
    """Save each model as raw weights, with an average of its own beside it."""
    paths = [folder / f"epoch{index}.pt" for index in range(len(models))]
    for path, model in zip(paths, models, strict=True):
        ema = {name: tensor * 2 if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()}
        torch.save({"model": model.state_dict(), "ema": ema}, path)
    return paths


def averaged(paths: list[Path], output: Path, **settings: object) -> tuple[Weights, dict[str, np.ndarray]]:
    """Average, and return the artefact and its arrays."""
    shares = settings.pop("shares", None)
    weights = average([open_checkpoint(path) for path in paths], BakeConfig(**settings), output, shares=shares)
    return weights, {name: read_tensor(ref) for name, ref in open_checkpoint(weights.path).root.items()}


def test_equals_torchs_swa(tmp_path: Path) -> None:
    """The mean of checkpoints is what AveragedModel makes of them, within an ulp of its running mean in float32; ours is rounded once."""
    models = [network(seed) for seed in range(5)]
    swa = AveragedModel(models[0], use_buffers=True)
    for model in models:
        swa.update_parameters(model)
    weights, arrays = averaged(saved(tmp_path, *models), tmp_path / "out.safetensors", choice="raw")
    for name, tensor in swa.module.state_dict().items():
        if tensor.is_floating_point():
            exact = sum(model.state_dict()[name].double() for model in models) / 5
            np.testing.assert_array_equal(arrays[name], exact.float().numpy())
            np.testing.assert_allclose(arrays[name], tensor.numpy(), rtol=1e-6, atol=1e-7)
        else:
            assert arrays[name] == models[-1].state_dict()[name], "a counter comes from the last checkpoint"
    assert (weights.summary.choice, weights.summary.num_averaged, weights.summary.num_copied) == ("average:raw", 8, 1)
    assert load_weights(weights.path).summary == weights.summary


def test_takes_the_averages_by_default_and_weighs_them(tmp_path: Path) -> None:
    """Without a choice each file's own average is taken; shares are divided by their sum and written down."""
    models = [network(seed) for seed in range(3)]
    weights, arrays = averaged(saved(tmp_path, *models), tmp_path / "out.safetensors", shares=(5, 3, 2))
    first, second, third = (2 * model[0].weight.detach().double() for model in models)
    np.testing.assert_array_equal(arrays["0.weight"], ((5.0 * first + 3.0 * second + 2.0 * third) / 10.0).float().numpy())
    assert weights.provenance.lineage["checkpoint_2_share"] == "0.3"
    assert weights.provenance.lineage["checkpoint_3_weights"] == "ema:ema"
    assert set(weights.provenance.made_from) == {"checkpoint 1", "checkpoint 2", "checkpoint 3"}
    assert weights.summary.remarks == ("mean of 3 checkpoints: epoch0.pt 50.00%, epoch1.pt 30.00%, epoch2.pt 20.00%",)
    assert "--bn-stats recalibrate" in weights.summary.batch_norm.warning
    assert weights.summary.left_behind["raw weights"] > 0


def test_same_input_same_bytes(tmp_path: Path) -> None:
    """Averaging again gives the same file; one checkpoint three times is that checkpoint, bit for bit."""
    paths = saved(tmp_path, network(0), network(1))
    one, two = (averaged(paths, tmp_path / name)[0].path.read_bytes() for name in ("a.safetensors", "b.safetensors"))
    assert one == two
    _, arrays = averaged([paths[0]] * 3, tmp_path / "c.safetensors", choice="raw")
    for name, tensor in torch.load(paths[0])["model"].items():
        assert arrays[name].tobytes() == tensor.numpy().tobytes()


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        pytest.param(lambda state: state.pop("0.bias"), "E247", r"epoch1\.pt(?s:.*)0\.bias", id="a tensor is missing"),
        pytest.param(lambda state: state.update({"3.bias": torch.ones(2)}), "E247", r"3\.bias", id="a tensor too many"),
        pytest.param(lambda state: state.update({"0.bias": torch.ones(7)}), "E248", r"0\.bias(?s:.*)\[7\]", id="another shape"),
        pytest.param(lambda state: state.update({"0.bias": torch.ones(6).half()}), "E248", "float16", id="another dtype"),
        pytest.param(lambda state: state.update({"0.bias": torch.full((6,), torch.inf)}), "E212", r"epoch1\.pt(?s:.*)0\.bias", id="infinity"),
    ],
)
def test_checkpoints_that_differ_are_refused(change: object, code: str, text: str, tmp_path: Path) -> None:
    """Names, shapes and dtypes have to be the same and values finite: the message names file and tensor, and nothing is written."""
    paths = saved(tmp_path, network(0), network(1))
    content = torch.load(paths[1])
    change(content["model"])
    torch.save({"model": content["model"]}, paths[1])
    with pytest.raises(LayoutError, match=text) as refused:
        averaged(paths, tmp_path / "out.safetensors", choice="raw")
    assert refused.value.code == code
    assert not (tmp_path / "out.safetensors").exists()


def test_mistakes_are_refused(tmp_path: Path) -> None:
    """One checkpoint, wrong shares, an output that is an input, a damaged file, and a file without an average."""
    paths = saved(tmp_path, network(0), network(1))
    output = tmp_path / "out.safetensors"
    with pytest.raises(LayoutError, match="E249"):
        averaged(paths[:1], output)
    for shares in ((1.0,), (1.0, -1.0), (1.0, float("nan")), (1.0, 0.0)):
        with pytest.raises(LayoutError, match="E250"):
            averaged(paths, output, shares=shares)
    with pytest.raises(LayoutError, match="E215"):
        averaged(paths, paths[1])
    torch.save({"model": network(2).state_dict()}, tmp_path / "raw.pt")
    with pytest.raises(LayoutError, match="E204"):
        averaged([*paths, tmp_path / "raw.pt"], output)
    content = bytearray(paths[1].read_bytes())
    (place,) = (ref.storage.offset for name, ref in open_checkpoint(paths[1]).root["ema"].items() if name == "0.weight")
    content[place] ^= 1
    paths[1].write_bytes(content)
    with pytest.raises(CheckpointError, match="E109"):
        averaged(paths, output)
    assert not output.exists()


@pytest.mark.parametrize("suffix", ["", ".pt", "under a key"])
def test_our_own_output_is_recognised(suffix: str, tmp_path: Path) -> None:
    """A baked average is that average, with updates and decay, baked raw weights stay raw; as safetensors, torch file, and under a key."""
    model = network(0)
    torch.save({"model": model.state_dict(), "ema": {"shadow": network(1).state_dict(), "decay": 0.9, "num_updates": 500}}, tmp_path / "made.pt")
    for choice in ("ema", "raw"):
        weights = bake(open_checkpoint(tmp_path / "made.pt"), BakeConfig(choice=choice), tmp_path / f"{choice}.safetensors")
        path = weights.path
        if suffix:
            path = tmp_path / f"{choice}.pt"
            assert path.suffix in TORCH_SUFFIXES
            save_torch(weights, path, form=TrainerForm("" if suffix == ".pt" else "state_dict"))
        reading = read_layout(open_checkpoint(path))
        assert reading.layout == "exporter"
        if choice == "raw":
            assert (reading.candidates, reading.raw_num_tensors) == ((), 8 + 1)
            with pytest.raises(LayoutError, match="E204"):
                bake(open_checkpoint(path), BakeConfig(), tmp_path / "again.safetensors")
        else:
            (candidate,) = reading.candidates
            assert (candidate.name, candidate.updates, candidate.decay, reading.raw_at) == ("ema", 500, 0.9, None)
            assert candidate.remark.startswith("baked by exporter")
        again = bake(open_checkpoint(path), BakeConfig(choice=choice), tmp_path / "again.safetensors")
        baked, first = (open_checkpoint(one.path).root for one in (again, weights))
        assert {name: read_tensor(ref).tobytes() for name, ref in baked.items()} == {name: read_tensor(ref).tobytes() for name, ref in first.items()}
    means, arrays = averaged([tmp_path / "ema.safetensors"] * 2, tmp_path / "mean.safetensors")
    assert arrays["0.bias"].tobytes() == network(1).state_dict()["0.bias"].numpy().tobytes()
    assert read_layout(open_checkpoint(means.path)).candidates[0].name == "average"


def test_a_foreign_member_of_that_name_means_nothing(tmp_path: Path) -> None:
    """A torch file with an ``exporter.json`` that is not ours, and one with a claim beside other keys, are read as what they are."""
    import zipfile

    for index, text in enumerate(("[1, 2", '["weights"]', '{"weights": 3}', '{"weights": ""}')):
        path = tmp_path / f"foreign{index}.pt"
        torch.save({"model": network(0).state_dict()}, path)
        root = zipfile.ZipFile(path).namelist()[0].partition("/")[0]
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{root}/exporter.json", text)
        assert read_layout(open_checkpoint(path)).layout == "raw"
