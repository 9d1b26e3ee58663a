"""The script for a GPU machine, tried without one: its pages, its raw samples, and what it says of what it cannot run."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``bench/gpu.py`` on the CPU."""
    command = [sys.executable, "bench/gpu.py", *map(str, arguments), "--device", "cpu", "--quick"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What a run with the network of the fixtures wrote, in two precisions."""
    folder = tmp_path_factory.mktemp("bench")
    chosen = "torch-fused,torch-fused-graph,onnx,tensorrt"
    ended = run(folder, "--networks", "digits", "--precisions", "fp32,fp16", "--batches", "1", "--contestants", chosen)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.parametrize(("precision", "raced"), [("fp32", ["torch-fused", "onnx"]), ("fp16", ["torch-fused"])])
def test_each_precision_has_its_page(out, precision, raced):
    """Who can run is compared with float64 and raced, and every sample is kept; who cannot is NOT_RUN with the reason."""
    [page] = out.glob(f"digits_{precision}_cpu_*.md")
    text = page.read_text(encoding="utf-8")
    assert f"digits in {precision}" in text
    assert "GPU: none" in text
    assert "- tensorrt: NOT_RUN, TensorRT runs on CUDA alone" in text
    raw = json.loads(gzip.decompress(page.with_suffix(".json.gz").read_bytes()))
    rows = [row for row in raw["rows"] if "latency" in row]
    assert [row["candidate"] for row in rows] == raced
    assert [row["parity"]["outcome"] for row in rows] == ["PASS"] * len(raced)
    own = rows[0]["parity"]["evidence"]["outputs"][0]["own_error"]
    assert (own > 1e-5) == (precision == "fp16")
    assert all(len(row["latency"]["evidence"]["samples_ms"]) >= 8 for row in rows)


def test_without_time_nothing_is_begun(tmp_path):
    """A limit that is over at once leaves no page, ends well and says what was not run; an unknown choice is refused."""
    ended = run(tmp_path, "--networks", "digits,convnext_tiny", "--minutes", "0")
    assert ended.returncode == 0
    assert "convnext_tiny: NOT_RUN, out of time" in ended.stderr
    assert not list(tmp_path.iterdir())
    assert "--precisions: fp12; known: fp32" in run(tmp_path, "--precisions", "fp12").stderr


def test_what_is_called_compiled_is_compiled(tmp_path, monkeypatch):
    """Dynamo sees the whole fused network as one graph; a copy of a compiled module would not be compiled any more."""
    from torch._dynamo.utils import counters

    monkeypatch.syspath_prepend(str(ROOT / "tests" / "gpu"))
    from subjects import digits

    from bench.gpu_contestants import CompiledTorchRunner, Entry, contestants

    monkeypatch.setattr(CompiledTorchRunner, "backend", "eager")
    entry = Entry(digits(tmp_path), "fp32", "cpu", (1,), tmp_path)
    [(_, make)] = contestants(entry, ("torch-fused-compiled",))
    counters.clear()
    with make() as runner:
        outputs = runner.infer({"image": np.zeros((2, 1, 8, 8), np.float32)})
    assert outputs["logits"].shape == (2, 10)
    assert counters["stats"]["unique_graphs"] == 1
