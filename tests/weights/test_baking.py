"""Baked weights are those of the training library, bit for bit, or nothing is written."""

from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import ArtifactError, CheckpointError, LayoutError
from exporter.files import digest_of_file
from exporter.weights import bake, identify, load_weights, weights_key

Baked = Callable[..., object]


def edited(digits: Path, change: Callable[[dict[str, object]], object]) -> Path:
    """Change the fixture's checkpoint as a dict and save it again."""
    path = digits / "digits.pt"
    content = torch.load(path)
    change(content)
    torch.save(content, path)
    return path


def test_digits_equal_torchs_own_average(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor equals, bit for bit, what AveragedModel holds after load_state_dict."""
    monkeypatch.syspath_prepend(str(digits))
    import model as digits_model

    content = torch.load(digits / "digits.pt")
    average = AveragedModel(digits_model.build())
    average.load_state_dict(content["model_ema"])
    weights = bake(open_checkpoint(digits / "digits.pt"), BakeConfig(decay=0.98), tmp_path / "w.safetensors")
    baked, wanted = load_file(weights.path), average.module.state_dict()
    assert set(baked) == set(wanted)
    for name, tensor in wanted.items():
        assert baked[name].dtype == tensor.dtype
        assert torch.equal(baked[name], tensor), name
    assert any(not torch.equal(baked[name], content["model"][name]) for name in baked), "raw and averaged weights must differ"
    monkeypatch.delitem(sys.modules, "model")


def test_raw_is_a_decision(digits: Path, baked: Baked) -> None:
    """With choice raw every tensor is the raw one, and no drift is claimed."""
    weights, arrays = baked(digits / "digits.pt", choice="raw")
    for name, tensor in torch.load(digits / "digits.pt")["model"].items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy())
    summary = weights.summary
    assert (summary.choice, summary.num_averaged, summary.drift, summary.drift_total, summary.candidate) == ("raw", 0, (), None, None)


def test_summary_and_provenance(digits: Path, baked: Baked) -> None:
    """The summary counts, the drift is that of NumPy in float64, the lineage and the file's metadata say where it came from."""
    path = digits / "digits.pt"
    weights, arrays = baked(path, decay=0.98)
    summary = weights.summary
    assert (summary.layout, summary.choice, summary.num_averaged, summary.num_copied) == ("torch-averaged-model", "ema:model_ema", 70, 13)
    assert (summary.candidate.updates, summary.candidate.state, summary.cast) == (540, "settled", "fp32 → fp32")
    raw = {name: tensor.double().numpy() for name, tensor in torch.load(path)["model"].items()}
    assert {drift.name for drift in summary.drift} == {name for name in arrays if arrays[name].dtype == np.float32}
    for drift in summary.drift:
        distance = arrays[drift.name].astype(np.float64) - raw[drift.name]
        assert drift.relative == pytest.approx(np.linalg.norm(distance) / np.linalg.norm(raw[drift.name]), rel=1e-12)
        assert drift.max_abs == np.abs(distance).max()
    every = [name for name in arrays if arrays[name].dtype == np.float32]
    total = np.sqrt(sum(np.sum((arrays[n].astype(np.float64) - raw[n]) ** 2) for n in every) / sum(np.sum(raw[n] ** 2) for n in every))
    assert summary.drift_total == pytest.approx(total, rel=1e-12)
    assert summary.left_behind["optimizer"] == 75_368
    assert summary.size_bytes == weights.path.stat().st_size
    digest = identify(open_checkpoint(path))
    assert digest == digest_of_file(path)
    assert weights.provenance.made_from == {"checkpoint": f"sha256:{digest.hex}"}
    lineage = weights.provenance.lineage
    assert (lineage["checkpoint"], lineage["checkpoint_sha256"], lineage["weights"]) == ("digits.pt", digest.hex, "ema:model_ema")
    assert (lineage["layout"], lineage["ema_updates"], lineage["ema_decay"]) == ("torch-averaged-model", "540", "0.98")
    with safetensors.safe_open(weights.path, "np") as file:
        metadata = file.metadata()
    assert {key.removeprefix("exporter."): value for key, value in metadata.items() if key != "format"} == lineage


def test_same_input_same_bytes(digits: Path, tmp_path: Path) -> None:
    """Twice the same, also where the digest was given and from another folder."""
    config, path = BakeConfig(), digits / "digits.pt"
    first = bake(open_checkpoint(path), config, tmp_path / "1.safetensors")
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "digits.pt")
    second = bake(open_checkpoint(moved), config, tmp_path / "2.safetensors", checkpoint_digest=identify(open_checkpoint(moved)))
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.digest == second.digest


@pytest.mark.parametrize(
    ("setting", "limit", "kind"),
    [("file", 0, "file"), ("contents", 1 << 40, "contents"), ("auto", 1 << 40, "file"), ("auto", 0, "contents")],
    ids=["file", "contents", "auto, small", "auto, large"],
)
def test_digests_are_what_was_asked_for(digits: Path, baked: Baked, monkeypatch: pytest.MonkeyPatch, setting: str, limit: int, kind: str) -> None:
    """Provenance and artefact hold the SHA-256 of every byte, or that of the contents, under a name that says so."""
    monkeypatch.setattr("exporter.weights.identity.SMALL_BYTES", limit)
    path = digits / "digits.pt"
    weights, _ = baked(path, decay=0.98, digest=setting)
    checkpoint = open_checkpoint(path)
    digest = digest_of_file(path) if kind == "file" else checkpoint.contents
    prefix = "" if kind == "file" else "contents_"
    assert digest is not None
    assert weights.provenance.made_from == {"checkpoint": str(digest)}
    assert weights.provenance.lineage[f"checkpoint_{prefix}sha256"] == digest.hex
    assert len([name for name in weights.provenance.lineage if name.endswith("sha256")]) == 1
    assert weights.digest.of == kind
    assert (weights.digest == digest_of_file(weights.path)) == (kind == "file")
    assert load_weights(weights.path) == weights


def test_contents_are_another_where_a_tensor_is(digits: Path) -> None:
    """The digest of the contents depends on every tensor, through its checksum, and on the pickle; not on the file's name."""
    path = digits / "digits.pt"
    before = identify(open_checkpoint(path), "contents")
    assert before.of == "contents"
    assert identify(open_checkpoint(path.rename(digits / "moved.pt")), "contents") == before
    content = torch.load(digits / "moved.pt")
    torch.save(content, path)
    same_name = identify(open_checkpoint(path), "contents")
    content["model"]["stem.0.weight"].view(-1)[0] += 1
    torch.save(content, path)
    other_tensor = identify(open_checkpoint(path), "contents")
    assert other_tensor != same_name
    content["epoch"] = 10**6
    torch.save(content, path)
    assert identify(open_checkpoint(path), "contents") not in {same_name, other_tensor}


@pytest.mark.parametrize(
    ("drift", "limit", "measured"),
    [("auto", 10**9, True), ("auto", 1000, False), ("always", 1000, True), ("never", 10**9, False)],
)
def test_drift_is_measured_where_it_is_cheap(
    drift: str, limit: int, measured: bool, digits: Path, baked: Baked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``auto`` leaves the raw weights unread where there are more averaged bytes than the limit; the output is the same."""
    monkeypatch.setattr("exporter.weights.baking._MAX_DRIFT_BYTES", limit)
    weights, arrays = baked(digits / "digits.pt", drift=drift)
    assert (weights.summary.drift_total is not None) == bool(weights.summary.drift) == measured
    for name, tensor in torch.load(digits / "digits.pt")["model_ema"].items():
        if name.startswith("module.") and tensor.is_floating_point():
            np.testing.assert_array_equal(arrays[name.removeprefix("module.")], tensor.numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_dtype_hides_what_is_not_finite(dtype: torch.dtype, value: float, baked: Baked) -> None:
    """NaN and both infinities are found in every floating dtype, wherever they stand; the largest finite values pass."""
    largest = torch.finfo(dtype).max
    weight = torch.full((700_001,), largest, dtype=dtype)
    weight[::2] = -largest
    assert baked({"state_dict": {"weight": weight}}, choice="raw")[0].summary.num_copied == 1
    weight[-1] = value
    with pytest.raises(LayoutError) as caught:
        baked({"state_dict": {"weight": weight}}, choice="raw")
    assert caught.value.code == "E212"


def test_record_gives_the_same_artefact_back(digits: Path, tmp_path: Path) -> None:
    """load_weights returns what bake returned for the same key, and None for another, or once a byte is changed."""
    config, path = BakeConfig(decay=0.98), digits / "digits.pt"
    key = weights_key(identify(open_checkpoint(path)), config)
    weights = bake(open_checkpoint(path), config, tmp_path / "w.safetensors")
    assert load_weights(weights.path, key=key) == weights
    assert load_weights(weights.path) == weights
    assert load_weights(weights.path, key=weights_key(identify(open_checkpoint(path)), BakeConfig())) is None
    with weights.path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    assert load_weights(weights.path, key=key) is None
    assert load_weights(tmp_path / "missing.safetensors") is None


def test_progress_ends_at_the_total(digits: Path, tmp_path: Path) -> None:
    """Progress only grows, and its last report is everything."""
    seen: list[tuple[int, int]] = []
    bake(open_checkpoint(digits / "digits.pt"), BakeConfig(), tmp_path / "w.safetensors", progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (79_632, 79_632)


# ---- the choice


def test_without_an_average_it_refuses_and_says_what_it_looked_at(digits: Path, baked: Baked, tmp_path: Path) -> None:
    """With the EMA removed: exit status 4, the keys looked at and found, the way to raw weights, and no file."""
    with pytest.raises(LayoutError, match="has none") as refused:
        baked(edited(digits, lambda content: content.pop("model_ema")))
    error = refused.value
    assert (error.code, error.exit_status) == ("E204", 4)
    assert {"state_dict_ema", "model_ema", "ema", "shadow"} <= set(error.facts["looked at"].split(", "))
    assert error.facts["found"] == "model, optimizer, epoch"
    assert "--weights raw" in error.help
    assert not (tmp_path / "out").exists()


def test_several_averages_need_a_choice(model: nn.Module, other_model: nn.Module, baked: Baked) -> None:
    """Several candidates are listed; --ema chooses; a wrong name gets the near miss."""
    content = {"model": model.state_dict(), "ema": other_model.state_dict(), "shadow": model.state_dict()}
    with pytest.raises(LayoutError, match="several EMAs") as refused:
        baked(content)
    assert refused.value.code == "E205"
    assert refused.value.help == "choose one: --ema ema  or  --ema shadow"
    _, arrays = baked(content, ema="ema")
    np.testing.assert_array_equal(arrays["0.weight"], other_model.state_dict()["0.weight"].numpy())
    with pytest.raises(LayoutError, match="'shadov'") as refused:
        baked(content, ema="shadov")
    assert (refused.value.code, refused.value.help) == ("E206", "--ema shadow")


def test_raw_weights_that_are_not_there(model: nn.Module, baked: Baked) -> None:
    """No fallback in the other direction either."""
    with pytest.raises(LayoutError, match="raw weights requested") as refused:
        baked({"ema": model.state_dict(), "model": None}, choice="raw")
    assert refused.value.code == "E201"


def test_cold_average_is_refused_unless_asked_for(model: nn.Module, other_model: nn.Module, baked: Baked) -> None:
    """2000 updates at 0.9999: 81.9 % initial weights."""
    content = {"model": model.state_dict(), "ema": {"shadow": dict(other_model.state_dict()), "decay": 0.9999, "num_updates": 2000}}
    with pytest.raises(LayoutError, match=r"81\.9 %") as refused:
        baked(content)
    assert refused.value.code == "E211"
    assert "0.9999 constant, 2000 updates" in refused.value.facts["file"]
    assert baked(content, allow_cold=True)[0].summary.candidate.state == "cold"


# ---- what is averaged and what is not


def test_counters_come_from_the_raw_weights(model: nn.Module, other_model: nn.Module, baked: Baked) -> None:
    """num_batches_tracked is raw, statistics are those of the average."""
    weights, arrays = baked({"state_dict": model.state_dict(), "state_dict_ema": other_model.state_dict()})
    assert arrays["1.num_batches_tracked"] == 7
    np.testing.assert_array_equal(arrays["1.running_mean"], other_model.state_dict()["1.running_mean"].numpy())
    assert (weights.summary.num_averaged, weights.summary.num_copied) == (5, 1)


def test_counters_without_raw_weights_are_the_averages_own(other_model: nn.Module, baked: Baked) -> None:
    """Where there are no raw weights the average's counter is kept, and the drift is unknown."""
    weights, arrays = baked({"ema": other_model.state_dict()})
    assert arrays["1.num_batches_tracked"] == 8
    assert (weights.summary.drift, weights.summary.drift_total) == ((), None)


def test_shadow_of_parameters_takes_buffers_from_raw(model: nn.Module, other_model: nn.Module, baked: Baked) -> None:
    """A shadow dict of parameters only: the statistics are the raw ones, and are counted as copied."""
    weights, arrays = baked({"model": model.state_dict(), "shadow": dict(other_model.named_parameters())})
    np.testing.assert_array_equal(arrays["1.running_var"], model.state_dict()["1.running_var"].numpy())
    np.testing.assert_array_equal(arrays["0.weight"], other_model.state_dict()["0.weight"].numpy())
    assert (weights.summary.num_averaged, weights.summary.num_copied) == (3, 3)


@pytest.mark.parametrize("layout", ["timm", "averaged", "dict"])
def test_missing_tensor_is_named(layout: str, model: nn.Module, other_model: nn.Module, baked: Baked) -> None:
    """A parameter that the average lacks is an error that names it, with the near miss."""
    ema = dict(other_model.state_dict())
    ema["0.weigth"] = ema.pop("0.weight")
    with pytest.raises(LayoutError, match="lacks 1 tensor") as refused:
        baked(with_layout(layout, model, ema))
    assert refused.value.code == "E207"
    assert refused.value.facts["missing"] == "0.weight"
    assert "0.weigth" in refused.value.facts["near miss"]


def test_missing_statistic_is_an_error_where_the_layout_averages_them(model: nn.Module, other_model: nn.Module, baked: Baked) -> None:
    """timm and AveragedModel hold every buffer; one that is missing was not left out on purpose."""
    for layout in ("timm", "averaged"):
        ema = dict(other_model.state_dict())
        del ema["1.running_mean"]
        with pytest.raises(LayoutError, match="lacks") as refused:
            baked(with_layout(layout, model, ema))
        assert refused.value.facts["missing"] == "1.running_mean"


@pytest.mark.parametrize("layout", ["timm", "averaged", "dict"])
def test_extra_tensor_is_named(layout: str, model: nn.Module, other_model: nn.Module, baked: Baked) -> None:
    """A tensor that only the average has is an error that names it."""
    with pytest.raises(LayoutError, match="that the raw weights lack") as refused:
        baked(with_layout(layout, model, {**other_model.state_dict(), "2.bias": torch.ones(1)}))
    assert (refused.value.code, refused.value.facts["extra"]) == ("E208", "2.bias")


@pytest.mark.parametrize("value", [torch.ones(3, 2, 3, 2), torch.ones(3, 2, 3, 3, dtype=torch.int64)], ids=["shape", "kind of dtype"])
def test_misshapen_tensor_is_named(value: torch.Tensor, model: nn.Module, other_model: nn.Module, baked: Baked) -> None:
    """Another shape, or integers for floats, is an error that names the tensor and gives both sides."""
    with pytest.raises(LayoutError, match=r"0\.weight") as refused:
        baked(with_layout("timm", model, {**other_model.state_dict(), "0.weight": value}))
    assert refused.value.code == "E209"
    assert refused.value.facts["at"] == "0.weight"


def test_entry_that_is_no_tensor_is_named(model: nn.Module, baked: Baked) -> None:
    """A sparse tensor among the weights has no plain bytes."""
    with pytest.raises(LayoutError, match="no plain tensor") as refused:
        baked({**model.state_dict(), "table": torch.eye(3).to_sparse()}, choice="raw")
    assert (refused.value.code, refused.value.facts["at"]) == ("E210", "table")


def with_layout(layout: str, model: nn.Module, ema: dict[str, torch.Tensor]) -> dict[str, object]:
    """Return a checkpoint in one of three layouts."""
    if layout == "timm":
        return {"state_dict": model.state_dict(), "state_dict_ema": ema}
    if layout == "averaged":
        return {"model": model.state_dict(), "model_ema": {"n_averaged": torch.tensor(9), **{f"module.{k}": v for k, v in ema.items()}}}
    return {"model": model.state_dict(), "ema": ema}


# ---- values


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_nonfinite_weights_are_refused(value: float, dtype: torch.dtype, baked: Baked, tmp_path: Path) -> None:
    """NaN and infinity are refused and named, and nothing is left; they pass if that is asked for."""
    weights = {"good": torch.ones(5, dtype=dtype), "bad.weight": torch.tensor([1.0, value], dtype=dtype)}
    with pytest.raises(LayoutError, match=r"bad\.weight") as refused:
        baked(weights, choice="raw")
    assert refused.value.code == "E212"
    assert not list((tmp_path / "out").iterdir())
    assert baked(weights, choice="raw", allow_nonfinite=True)[1]["bad.weight"].tobytes() == weights["bad.weight"].view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("target", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("source", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_casts_round_as_torch_does(source: torch.dtype, target: str, baked: Baked) -> None:
    """Casting floats gives torch's bits; integers stay."""
    tensor = torch.randn(1000, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(source)
    weights, _ = baked({"w": tensor, "n": torch.tensor(3)}, choice="raw", dtype=target)
    loaded = load_file(weights.path)
    assert torch.equal(loaded["w"], tensor.to(getattr(torch, target)))
    assert loaded["n"].dtype == torch.int64


def test_cast_that_overflows_is_refused(baked: Baked) -> None:
    """70000 is no float16: refused and named, never written as infinity."""
    with pytest.raises(LayoutError, match="does not fit into float16") as refused:
        baked({"w": torch.tensor([7e4])}, choice="raw", dtype="float16")
    assert refused.value.code == "E213"


def test_half_average_beside_float_raw(model: nn.Module, other_model: nn.Module, baked: Baked) -> None:
    """What is stored is baked: a half average stays half, its drift is taken against the float raw weights."""
    ema = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in other_model.state_dict().items()}
    weights, arrays = baked({"state_dict": model.state_dict(), "state_dict_ema": ema})
    assert arrays["0.weight"].dtype == np.float16
    assert weights.summary.cast == "fp16 → fp16"
    drift = next(drift for drift in weights.summary.drift if drift.name == "0.weight")
    raw = model.state_dict()["0.weight"].double()
    assert drift.relative == pytest.approx(float((ema["0.weight"].double() - raw).norm() / raw.norm()), rel=1e-12)


def test_views_and_tied_tensors(baked: Baked) -> None:
    """Strided views are written row-major; tied tensors under both names; large ones over many chunks."""
    base = torch.randn(700, 801, generator=torch.Generator().manual_seed(5))
    content = {
        "t": base.t(),
        "s": base[3:, ::7],
        "tied": base,
        "again": base,
        "last": base.reshape(-1)[-3:],
        "expanded": torch.ones(1).expand(5),
        "none": base[:0],
    }
    weights, _ = baked(content, choice="raw")
    loaded = load_file(weights.path)
    for name, tensor in content.items():
        assert torch.equal(loaded[name], tensor), name
    twin = {name: tensor + 1 for name, tensor in content.items()}
    summary = baked({"model": twin, "ema": content})[0].summary
    assert {round(drift.max_abs, 5) for drift in summary.drift if drift.name != "none"} == {1.0}


def test_safetensors_checkpoint(tmp_path: Path, baked: Baked) -> None:
    """A safetensors file is raw weights."""
    from safetensors.torch import save_file

    save_file({"w": torch.arange(4.0)}, tmp_path / "x.safetensors")
    assert baked(tmp_path / "x.safetensors", choice="raw")[1]["w"].tolist() == [0, 1, 2, 3]
    with pytest.raises(LayoutError, match="has none"):
        baked(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        pytest.param({"w": torch.ones(2, dtype=torch.complex128)}, "E214", id="dtype that safetensors lacks"),
        pytest.param({"w\x1b[2J": torch.ones(2)}, "E218", id="name with a control character"),
    ],
)
def test_what_the_output_cannot_hold_is_refused(content: dict[str, torch.Tensor], code: str, baked: Baked) -> None:
    """Dtypes and names that safetensors or a terminal cannot hold are refused by name."""
    with pytest.raises(LayoutError) as refused:
        baked(content, choice="raw")
    assert refused.value.code == code


def test_repeated_bytes_are_bounded(baked: Baked) -> None:
    """A small file whose tensors repeat one storage without end does not fill the disk."""
    tensor = torch.ones(1).expand(1 << 26)
    with pytest.raises(CheckpointError, match="repeat its bytes") as refused:
        baked({f"w{index}": tensor for index in range(64)}, choice="raw")
    assert refused.value.code == "E111"


# ---- writing


def test_output_must_not_be_the_checkpoint(digits: Path) -> None:
    """The checkpoint is never overwritten, also under another name for it."""
    path = digits / "digits.pt"
    before = path.read_bytes()
    (digits / "link.safetensors").hardlink_to(path)
    for output in (path, digits / "link.safetensors"):
        with pytest.raises(LayoutError, match="overwrite the checkpoint"):
            bake(open_checkpoint(path), BakeConfig(), output)
    assert path.read_bytes() == before


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file(failing: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk at the worst moment: the old output is whole, no temporary file is left."""
    output = tmp_path / "out" / "w.safetensors"
    output.parent.mkdir()
    output.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", fail) if failing == "fsync" else (Path, "replace", fail)))
    with pytest.raises(ArtifactError, match="could not be written"):
        bake(open_checkpoint(digits / "digits.pt"), BakeConfig(), output)
    assert [(path.name, path.read_bytes()) for path in output.parent.iterdir()] == [("w.safetensors", b"old")]


def test_kill_leaves_no_partial_output(digits: Path, tmp_path: Path, repository: Path) -> None:
    """A process killed while it writes leaves no output under its name."""
    output = tmp_path / "out" / "w.safetensors"
    code = (
        "import os, signal; from pathlib import Path\n"
        "from exporter.checkpoint import open_checkpoint; from exporter.config import BakeConfig; from exporter.weights import bake\n"
        f"bake(open_checkpoint(Path({str(digits / 'digits.pt')!r})), BakeConfig(), Path({str(output)!r}),\n"
        "     progress=lambda done, total: done > total / 2 and os.kill(os.getpid(), signal.SIGKILL))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, check=False)
    assert done.returncode == -9
    assert not output.exists()


def test_baking_needs_no_torch(digits: Path, tmp_path: Path, repository: Path) -> None:
    """Neither torch nor onnx is imported to bake."""
    code = (
        "import sys; from pathlib import Path\n"
        "from exporter.checkpoint import open_checkpoint; from exporter.config import BakeConfig; from exporter.weights import bake\n"
        f"bake(open_checkpoint(Path({str(digits / 'digits.pt')!r})), BakeConfig(), Path({str(tmp_path / 'w.safetensors')!r}))\n"
        "print([name for name in ('torch', 'onnx', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository, check=True)
    assert done.stdout.strip() == "[]"
