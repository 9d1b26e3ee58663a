"""Ctrl-C in the middle of a build: nothing is left, neither files nor processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from releases import RELEASES

ROOT = Path(__file__).resolve().parent.parent.parent


def children(pid: int) -> list[int]:
    """Return the processes that have this parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] not in {"Z", "X"}:
            found.append(int(path.parent.name))
    return found


@pytest.fixture
def onnx_file(tmp_path):
    """A small ONNX file from elsewhere."""
    import onnx

    values = [[onnx.helper.make_tensor_value_info(name, 1, ["batch", 1, 8, 8])] for name in ("image", "logits")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["image"], ["logits"])], "g", *values)
    path = tmp_path / "small.onnx"
    path.write_bytes(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    return path


@pytest.mark.parametrize("release", [RELEASES[1], RELEASES[-1]], ids=str)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_interrupted_build_leaves_nothing(config, onnx_file, scenario, tmp_path, number, release):
    """The command ends with its status for an interrupt, the worker is gone, no plan and no tactics are there, and every cache is free."""
    scenario(slow=1.0)
    out = tmp_path / "out"
    settings = {"EXPORTER_TENSORRT_PYTHON": config.python, "EXPORTER_TENSORRT_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-c",
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from exporter.cli.app import main; sys.exit(main())",
        "build-trt",
        str(onnx_file),
        "-o",
        str(out / "a.plan"),
        "--version-compatible",
        *(["--reproducible"] if release.number >= (10, 8) else []),
    ]
    with subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, **settings}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "cache").glob("timing/*.lock")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.0)
        workers = children(process.pid)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], err
    assert "Traceback" not in err
    assert len(workers) == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert list(out.glob("**/*")) == []
    assert {path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()} == {".lock"}
