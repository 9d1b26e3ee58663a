"""The main job on the digits fixture, as a user runs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]


def _json(run_cli: RunCli, *arguments: str | Path, cwd: Path, status: int = 0) -> Any:
    done = run_cli(*arguments, "--json", cwd=cwd)
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


def test_run_goes_from_checkpoint_to_verdict_and_reuses_its_work(digits: Path, run_cli: RunCli) -> None:
    """The first run makes everything and passes; the second takes what is up to date; TensorRT is NOT_RUN with a reason."""
    first = run_cli("run", cwd=digits)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "PASS" in first.stdout
    assert "NOT_RUN" in first.stdout
    assert "report.html" in first.stdout

    result = _json(run_cli, "run", cwd=digits)
    report = result["report"]
    assert report["outcome"] == "PASS"
    assert {record["stage"]: record["state"] for record in report["stages"]} == {
        "bake": "up to date",
        "fold": "up to date",
        "onnx": "up to date",
        "engine": "NOT_RUN",
    }
    verdicts = {(v["check"], v["subject"]): v for v in report["verdicts"]}
    assert verdicts["parity", "torch-fused"]["outcome"] == "PASS"
    assert verdicts["parity", "onnx"]["outcome"] == "PASS"
    assert verdicts["latency", "onnx"]["outcome"] == "PASS"
    assert verdicts["parity", "tensorrt"]["outcome"] == "NOT_RUN"
    assert verdicts["parity", "tensorrt"]["reason"]
    assert report["lineage"]["checkpoint_sha256"]
    values = next(v["evidence"]["values"] for v in report["verdicts"] if v["check"] == "metric")
    assert values["raw"] < values["ema"] == values["fused"] == values["onnx"]

    folder = Path(result["folder"])
    folder = folder if folder.is_absolute() else digits / folder
    assert {"report.json", "report.html", "junit.xml", "summary.md"} <= {path.name for path in folder.iterdir()}
    assert ElementTree.parse(folder / "junit.xml").getroot().tag in {"testsuite", "testsuites"}


def test_a_changed_setting_makes_only_what_depends_on_it(digits: Path, run_cli: RunCli) -> None:
    """Another opset exports again, and neither bakes nor folds again."""
    _json(run_cli, "export-onnx", cwd=digits)
    before = {path.name: path.stat().st_mtime_ns for path in (digits / ".exporter").iterdir() if path.is_file()}
    model = _json(run_cli, "export-onnx", "--opset", "19", cwd=digits)
    assert model["opset"] == 19
    after = {path.name: path.stat().st_mtime_ns for path in (digits / ".exporter").iterdir() if path.is_file()}
    assert after["digits.onnx"] != before["digits.onnx"]
    assert after["digits.baked.safetensors"] == before["digits.baked.safetensors"]
    assert after["digits.fused.pt2"] == before["digits.fused.pt2"]


def test_bake_ema_equals_the_librarys_own_object(digits: Path, run_cli: RunCli, tmp_path: Path) -> None:
    """The baked weights are, bit for bit, what torch's AveragedModel holds after loading the checkpoint."""
    import sys

    from safetensors.torch import load_file

    sys.path.insert(0, str(digits))
    try:
        from model import build
    finally:
        sys.path.remove(str(digits))
    output = tmp_path / "out.safetensors"
    done = run_cli("bake-ema", "digits.pt", "-o", output, cwd=digits)
    assert done.returncode == 0, done.stderr

    average = torch.optim.swa_utils.AveragedModel(build())
    average.load_state_dict(torch.load(digits / "digits.pt", weights_only=True)["model_ema"])
    expected = average.module.state_dict()
    baked = load_file(output)
    assert baked.keys() == expected.keys()
    assert all(baked[name].dtype == value.dtype and torch.equal(baked[name], value) for name, value in expected.items())


def test_a_checkpoint_without_an_average_is_refused(digits: Path, run_cli: RunCli) -> None:
    """With the EMA removed the command exits 4, says what it looked at, and writes nothing; raw is a decision."""
    checkpoint = torch.load(digits / "digits.pt", weights_only=True)
    del checkpoint["model_ema"]
    torch.save(checkpoint, digits / "raw.pt")
    done = run_cli("bake-ema", "raw.pt", "-o", "out.safetensors", cwd=digits)
    assert done.returncode == 4
    assert "looked at" in done.stderr
    assert "model_ema" in done.stderr
    assert "--weights raw" in done.stderr
    assert not (digits / "out.safetensors").exists()
    assert run_cli("bake-ema", "raw.pt", "--weights", "raw", "-o", "out.safetensors", cwd=digits).returncode == 0


def test_fuse_bn_check_passes_and_names_what_it_kept(digits: Path, run_cli: RunCli) -> None:
    """Every BatchNorm is folded, the one behind a ReLU ahead; one that is kept on purpose is named; the comparison passes."""
    result = _json(run_cli, "fuse-bn", "--check", cwd=digits)
    assert (result["num_batch_norms"], len(result["folded"]), result["refusals"]) == (13, 13, [])
    assert {f["batch_norm"]: f["producer"] for f in result["folded"]}["stages.norm"] == "hidden"
    assert result["outcome"] == "PASS"
    (digits / "exporter.toml").write_text((digits / "exporter.toml").read_text() + '\n[fold]\nkeep = ["stages.norm"]\n')
    result = _json(run_cli, "fuse-bn", "--check", cwd=digits)
    assert len(result["folded"]) == 12
    assert [(r["batch_norm"], r["reason"]) for r in result["refusals"]] == [("stages.norm", "excluded by the configuration")]
    assert result["outcome"] == "PASS"


def test_a_disturbed_fold_fails_with_its_place_and_the_smallest_tolerance(
    digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One folded weight that is off by 1 % ends with exit status 3, naming the output and the tolerance that would pass."""
    import dataclasses

    import exporter.graph
    from exporter.artifacts import Graph
    from exporter.cli.app import main

    fold = exporter.graph.fold

    def disturbed_fold(*arguments: Any, **settings: Any) -> Graph:
        graph = fold(*arguments, **settings)
        state = dict(graph.folded_program.state_dict)
        name = next(name for name in state if name.startswith("stages.block2.grouped") and state[name].ndim == 4)
        weight = state[name].detach().clone()
        index = int(weight.abs().argmax())
        weight.view(-1)[index] *= 1.01
        graph.folded_program.state_dict[name] = torch.nn.Parameter(weight)
        return dataclasses.replace(graph)

    monkeypatch.setattr(exporter.graph, "fold", disturbed_fold)
    monkeypatch.chdir(digits)
    with pytest.raises(SystemExit) as caught:
        main(["fuse-bn", "--check"])
    shown = capsys.readouterr().out
    assert caught.value.code == 3, shown
    assert "FAIL" in shown
    assert "logits" in shown
    assert "rtol" in shown
    assert "stages.block2" in shown


def test_check_bench_report_and_doctor(digits: Path, run_cli: RunCli) -> None:
    """Single commands judge single artefacts; a run renders again; the doctor tells what is missing."""
    run_cli("export-onnx", "-o", "mine.onnx", cwd=digits)
    checked = _json(run_cli, "check", "mine.onnx", cwd=digits)
    assert [(v["subject"], v["outcome"]) for v in checked["verdicts"]] == [("onnx", "PASS")]
    raced = _json(run_cli, "bench", "mine.onnx", "--batch", "8", cwd=digits)
    assert raced["verdicts"][0]["evidence"]["batch"] == 8
    assert raced["outcome"] == "PASS"
    doctor = _json(run_cli, "doctor", cwd=digits)
    assert doctor["abilities"]["fold, check"]["can"] == "yes"
    assert doctor["abilities"]["build engines"]["why"]
    run = _json(run_cli, "run", cwd=digits)
    html = digits / ".exporter" / "runs" / run["report"]["run"] / "report.html"
    html.unlink()
    again = _json(run_cli, "report", cwd=digits)
    assert again["report"] == run["report"]
    assert html.exists()


def test_a_required_speed_that_is_not_reached_is_status_3(digits: Path, run_cli: RunCli) -> None:
    """A gate that fails ends with 3 and says so, with the interval."""
    done = run_cli("bench", "--min-speedup", "1000", cwd=digits)
    assert done.returncode == 3
    assert "FAIL" in done.stdout


def test_init_makes_a_configuration_that_loads(digits: Path, run_cli: RunCli, tmp_path: Path) -> None:
    """The written file is valid, points at the checkpoint from where it lies, and is not overwritten."""
    from exporter.config import load_config

    output = tmp_path / "elsewhere" / "exporter.toml"
    output.parent.mkdir()
    done = run_cli("init", digits / "digits.pt", "-o", output)
    assert done.returncode == 0, done.stderr
    config = load_config(output, environment={})
    assert config.checkpoint is not None
    assert config.resolve(config.checkpoint).resolve() == (digits / "digits.pt").resolve()


def test_commands_work_without_a_configuration(digits: Path, run_cli: RunCli, tmp_path: Path) -> None:
    """In a folder without exporter.toml everything is named on the command line, and artefacts land there."""
    folder = tmp_path / "loose"
    folder.mkdir()
    done = run_cli("bake-ema", digits / "digits.pt", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "digits.baked.safetensors").exists()
    done = run_cli("fuse-bn", f"{digits / 'model.py'}:build", "--checkpoint", digits / "digits.pt", cwd=folder)
    assert done.returncode == 2, "without samples or --input the input cannot be known"
    assert "--input" in done.stderr
    arguments = [f"{digits / 'model.py'}:build", "--checkpoint", digits / "digits.pt", "--input", "image:2x1x8x8", "--check"]
    done = run_cli("fuse-bn", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "random inputs only" in done.stdout
    assert (folder / "digits.fused.pt2").exists()
