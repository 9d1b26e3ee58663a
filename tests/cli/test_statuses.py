"""Exit statuses and the shape of errors, as a script sees them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter.cli.app import cli

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        pytest.param(["bake-emma"], 2, "Did you mean", id="misspelt command"),
        pytest.param(["inspect"], 2, "CKPT", id="missing argument"),
        pytest.param(["run", "--min-spedup", "2"], 2, "--min-speedup", id="misspelt option"),
        pytest.param(["run", "--min-speedup", "fast"], 2, "--min-speedup", id="wrong type"),
        pytest.param(["inspect", "none.pt"], 4, "none.pt", id="missing file"),
        pytest.param(["inspect", "."], 4, ".", id="a folder"),
        pytest.param(["inspect", "digits.pt", "--layers"], 2, "--layers", id="layers of a checkpoint"),
        pytest.param(["inspect", "none.plan"], 4, "none.plan", id="missing plan"),
        pytest.param(["bake-ema", "model.py"], 4, "model.py", id="no checkpoint"),
        pytest.param(["bake-ema", "digits.pt", "--ema", "other"], 4, "model_ema", id="no such average"),
        pytest.param(["bake-ema", "digits.pt", "--under", "state_dict"], 2, ".pt", id="a key in a file without keys"),
        pytest.param(["bake-ema", "digits.pt", "-o", "digits.pt"], 4, "overwrite", id="onto the checkpoint"),
        pytest.param(["average"], 2, "CKPT", id="nothing to average"),
        pytest.param(["average", "digits.pt"], 4, "E249", id="an average of one"),
        pytest.param(["average", "digits.pt", "digits.pt", "--share", "half"], 2, "0.5,0.3,0.2", id="no numbers"),
        pytest.param(["average", "digits.pt", "digits.pt", "--share", "1"], 4, "E250", id="too few shares"),
        pytest.param(["average", "digits.pt", "none.pt"], 4, "none.pt", id="one checkpoint is missing"),
        pytest.param(["average", "digits.pt", "--sigma-rels", "0.05,0.28"], 2, "--post-hoc", id="widths for nothing"),
        pytest.param(["average", "digits.pt", "--post-hoc", "0.1", "--share", "1"], 2, "--share", id="shares of snapshots"),
        pytest.param(["average", "digits.pt", "--post-hoc", "0.1"], 4, "E265", id="no snapshots"),
        pytest.param(["average", "0.9.pt", "1.9.pt", "--post-hoc", "0.1"], 4, "--sigma-rels", id="widths are not in the snapshots"),
        pytest.param(["fuse-bn", "model.py:biuld"], 2, "build", id="misspelt factory"),
        pytest.param(["fuse-bn", "none.py:build"], 2, "none.py", id="missing model file"),
        pytest.param(["fuse-bn", "--input", "image:2xbig"], 2, "NAME:SHAPE", id="no shape"),
        pytest.param(["fuse-bn", "model.py:build", "width"], 2, "key=value", id="no key=value"),
        pytest.param(["fuse-bn", "model.py:build", "width=8"], 4, "stem.0.weight", id="the weights do not fit"),
        pytest.param(["check", "none.onnx"], 4, "none.onnx", id="missing artefact"),
        pytest.param(["check", "model.py"], 4, "model.py", id="no artefact"),
        pytest.param(["check", "--builds", "5"], 2, "--find-islands", id="builds for nothing"),
        pytest.param(["check", "--find-islands"], 2, "E566", id="islands in float32"),
        pytest.param(["check", "digits.onnx", "--find-islands"], 2, "ARTEFACT", id="islands of a file"),
        pytest.param(["build-trt", "--find-islands", "-o", "x.plan"], 2, "--output", id="islands of an engine that is to be kept"),
        pytest.param(["package"], 2, "--triton", id="packaged for nobody"),
        pytest.param(["package", "none.onnx", "--triton", "models"], 4, "none.onnx", id="nothing to package"),
        pytest.param(["package", "model.py", "--triton", "models"], 4, "model.py", id="no artefact to package"),
        pytest.param(["report", "none"], 4, "none", id="missing run"),
        pytest.param(["init", "digits.pt"], 4, "exporter.toml", id="would overwrite"),
        pytest.param(["run", "--config", "none.toml"], 2, "none.toml", id="missing configuration"),
        pytest.param(["build-trt"], 6, "TensorRT", id="no TensorRT here"),
        pytest.param(["run", "--require-trt"], 6, "TensorRT", id="TensorRT is required"),
    ],
)
def test_a_users_mistake_has_its_status_and_no_traceback(digits: Path, run_cli: RunCli, arguments: list[str], status: int, text: str) -> None:
    """Each mistake ends with the documented status, a message on stderr that names the culprit, and nothing on stdout."""
    done = run_cli(*arguments, cwd=digits)
    assert done.returncode == status, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_json_errors_carry_the_same_facts(digits: Path, run_cli: RunCli) -> None:
    """With ``--json`` an error is an object on stdout, and the text stays on stderr."""
    done = run_cli("bake-ema", "digits.pt", "--ema", "other", "--json", cwd=digits)
    error = json.loads(done.stdout)["error"]
    assert done.returncode == error["exit_status"] == 4
    assert error["code"] in done.stderr
    assert error["help"]


def test_required_tensorrt_by_configuration_is_status_6(digits: Path, run_cli: RunCli) -> None:
    """``[tensorrt] required = true`` turns the missing GPU into exit status 6, and says what is missing and how to get it."""
    config = digits / "exporter.toml"
    config.write_text(config.read_text().replace("required = false", "required = true"))
    done = run_cli("run", cwd=digits)
    assert done.returncode == 6
    assert "help:" in done.stderr


def test_an_interrupt_is_status_130_and_leaves_nothing_half(digits: Path) -> None:
    """Ctrl-C ends with 130, one line, no traceback; only whole files are left."""
    script = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from exporter.cli.app import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    deadline = time.monotonic() + 120
    with subprocess.Popen(
        [sys.executable, "-c", script, "run"], cwd=digits, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        while not list((digits / ".exporter").glob("*.safetensors")) and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "Traceback" not in err
    assert not list((digits / ".exporter").glob("**/*tmp*"))


@pytest.mark.parametrize("name", cli.list_commands(None))  # type: ignore[arg-type]
def test_every_command_has_help_and_json(name: str) -> None:
    """Every command explains itself, and knows ``--json``, ``--quiet`` and ``-h``."""
    command = cli.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    options = {option for parameter in command.params for option in parameter.opts}
    assert {"--json", "--quiet"} <= options
    assert command.help
    assert all(getattr(parameter, "help", None) for parameter in command.params if parameter.param_type_name == "option")


def test_options_are_frozen() -> None:
    """An option is added or taken away on purpose: this list changes with it."""
    found = {name: sorted(o for p in cli.get_command(None, name).params for o in p.opts if o.startswith("--")) for name in cli.list_commands(None)}  # type: ignore[union-attr,arg-type]
    common = ["--json", "--quiet"]
    weights = ["--allow-cold", "--allow-nonfinite", "--bn-stats", "--decay", "--dtype", "--ema", "--strip-prefix", "--weights"]
    expected = {
        "run": ["--config", "--fold-input", "--fold-level", "--input", "--min-speedup", "--model", "--require-trt", *weights],
        "inspect": ["--decay", "--depth", "--digest", "--layers", "--tree"],
        "bake-ema": ["--config", "--select", "--metric", "--model", "--output", "--under", *weights],
        "average": ["--config", "--model", "--output", "--post-hoc", "--share", "--sigma-rels", "--under", *weights],
        "fuse-bn": [
            "--check",
            "--checkpoint",
            "--config",
            "--explain",
            "--fold-input",
            "--fold-level",
            "--input",
            "--keep",
            "--output",
            "--plan",
            *weights,
        ],
        "export-onnx": [
            "--check",
            "--checkpoint",
            "--config",
            "--float32",
            "--fold-input",
            "--fold-level",
            "--input",
            "--opset",
            "--output",
            "--precision",
            "--static-batch",
            *weights,
        ],
        "build-trt": [
            "--builds",
            "--config",
            "--debug-tensors",
            "--find-islands",
            "--float32",
            "--optimization-level",
            "--output",
            "--plugin",
            "--precision",
            "--profile",
            "--python",
            "--refit",
            "--refittable",
            "--reproducible",
            "--stripped",
            "--tf32",
            "--version-compatible",
            "--workspace-mib",
        ],
        "package": ["--config", "--device", "--instances", "--max-batch", "--name", "--queue-delay-us", "--triton"],
        "check": ["--builds", "--config", "--find-islands"],
        "bench": ["--batch", "--config", "--min-speedup", "--rounds", "--threads"],
        "report": ["--config"],
        "doctor": ["--config"],
        "init": ["--force", "--output"],
    }
    assert found == {name: sorted([*options, *common]) for name, options in expected.items()}
