"""What a command imports before it does anything; times are in ``bench/startup.py``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "tensorrt", "matplotlib", "scipy", "rich"}
SCRIPT = """
import sys
from exporter.cli.app import main
try:
    main(sys.argv[1:])
finally:
    print("MODULES", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def _modules_after(cwd: Path, *arguments: str, options: tuple[str, ...] = ()) -> tuple[set[str], str]:
    """Run the program and return the top-level modules it had imported at its end, and its stderr."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, *options, "-c", SCRIPT, *arguments], cwd=cwd, capture_output=True, text=True, check=True, env=environment)
    return set(done.stderr.rpartition("MODULES")[2].split()), done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["-h"],
        ["--version"],
        ["run", "-h"],
        ["inspect", "digits.pt"],
        ["inspect", "digits.pt", "--json"],
        ["bake-ema", "digits.pt"],
        ["init", "digits.pt", "--force"],
    ],
    ids=" ".join,
)
def test_no_framework_is_imported(digits: Path, arguments: list[str]) -> None:
    """Help, inspection and baking need no torch, no onnx and no onnxruntime."""
    modules, _ = _modules_after(digits, *arguments)
    assert "exporter" in modules
    assert not modules & HEAVY


def test_help_is_made_of_the_command_line_alone(digits: Path) -> None:
    """``exporter -h`` imports no numpy, and no module of a command."""
    modules, shown = _modules_after(digits, "-h", options=("-X", "importtime"))
    ours = {line.rpartition("|")[2].strip() for line in shown.splitlines() if "| " in line and "exporter" in line}
    assert ours == {"exporter", "exporter.cli", "exporter.cli.app", "exporter.cli.screen", "exporter.errors"}
    assert "numpy" not in modules


def test_inspection_imports_the_reader_of_its_container_alone(digits: Path) -> None:
    """Neither the readers of other containers nor what only they need, and no NumPy."""
    _, shown = _modules_after(digits, "inspect", "digits.pt", options=("-X", "importtime"))
    imported = {line.rpartition("|")[2].strip() for line in shown.splitlines() if "| " in line}
    assert "exporter.checkpoint.torch_zip" in imported
    others = {
        "distributed",
        "deepspeed",
        "hdf5_file",
        "torch_legacy",
        "torch_tar",
        "torchscript",
        "exported_program",
        "safetensors_shards",
        "tensorflow_bundle",
        "flax_msgpack",
    }
    assert not imported & {f"exporter.checkpoint.{name}" for name in others}
    assert not imported & {"numpy", "subprocess", "zipfile", "importlib.metadata", "tomllib", "difflib"}


def test_the_way_to_baking_imports_no_numpy() -> None:
    """What ``bake-ema`` imports before it copies the first byte goes without NumPy, which a large file needs in another thread only."""
    code = "import sys, exporter.cli.bake_ema, exporter.cli.folders, exporter.workspace, exporter.weights.baking; print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_the_package_runs_as_a_module() -> None:
    """``python -m exporter`` is the program, for environments whose scripts are not on the path."""
    done = subprocess.run([sys.executable, "-m", "exporter", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("exporter ")
