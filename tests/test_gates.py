"""Which feeds each candidate is judged on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from exporter.artifacts import Profile
from exporter.config import OnnxruntimeConfig
from exporter.errors import EnvironmentLacking
from exporter.gates import Candidate, Gates, _taken
from exporter.verify import NamedFeed, Reference, not_run


def set_profiles(folder, *texts: str) -> None:
    """Write profiles into the configuration."""
    config = folder / "exporter.toml"
    config.write_text(config.read_text().replace("[tensorrt]\n", f"[tensorrt]\nprofiles = {json.dumps(texts)}\n"))


def named(batch: int) -> NamedFeed:
    """A feed of one batch."""
    return NamedFeed(f"batch {batch}", "recorded", {"x": np.zeros((batch, 2), np.float32)}, batch, batch)


def test_every_candidate_is_judged_at_the_corners_of_the_profiles(digits, run_cli):
    """The smallest, optimal and largest batch of each configured profile are among the feeds, for ONNX too, on a machine without a GPU."""
    config = digits / "exporter.toml"
    config.write_text(
        config.read_text().replace("[tensorrt]\n", '[tensorrt]\nprofiles = ["image:1x1x8x8,3x1x8x8,5x1x8x8", "image:7x1x8x8,7x1x8x8,9x1x8x8"]\n')
    )
    done = run_cli("check", "--json", "--quiet", cwd=digits)
    assert done.returncode == 0, done.stderr
    verdicts = {verdict["subject"]: verdict for verdict in json.loads(done.stdout)["verdicts"]}
    for subject in ("torch-fused", "onnx"):
        feeds = verdicts[subject]["evidence"]["feeds"]
        assert all(any(feed.endswith(f"samples, batch {batch}") for feed in feeds) for batch in (1, 3, 5, 7, 9, 32)), feeds


def test_a_profile_that_does_not_fit_the_model_is_said_without_a_gpu(digits, run_cli):
    """A misspelt profile ends a check on any machine, before anything is compared."""
    set_profiles(digits, "imgae:1x1x8x8,1x1x8x8,1x1x8x8")
    done = run_cli("check", cwd=digits)
    assert done.returncode == 2
    assert "E512" in done.stderr
    assert "did you mean image?" in done.stderr


def test_an_engine_is_judged_on_what_it_takes():
    """Feeds outside the profiles of an engine are left to the others, and the verdict says which."""
    reference = Reference("reference", "float64", "cpu", {}, tuple(map(named, (64, 32, 1))))
    candidate = Candidate("tensorrt", lambda: None, profiles=(Profile({"x": ((16, 2), (32, 2), (64, 2))}),))
    taken = _taken(reference, candidate)
    assert [feed.name for feed in taken.feeds] == ["batch 64", "batch 32"]
    assert taken.remarks == ("outside the profiles of the engine, not run: batch 1",)
    assert _taken(reference, Candidate("onnx", lambda: None)) is reference


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU: the provider may start")
def test_a_provider_that_this_machine_lacks_is_not_run(digits, run_cli):
    """CUDA in ONNX Runtime on a machine without it is NOT_RUN with what is missing; where it is required, the exit status is 6."""
    wish = {"EXPORTER_ONNXRUNTIME_PROVIDERS": '["CPUExecutionProvider", "CUDAExecutionProvider"]'}
    done = run_cli("check", "--json", "--quiet", cwd=digits, env=wish)
    assert done.returncode == 0, done.stderr
    verdicts = {verdict["subject"]: verdict for verdict in json.loads(done.stdout)["verdicts"]}
    assert (verdicts["onnx"]["outcome"], verdicts["onnx-cuda"]["outcome"]) == ("PASS", "NOT_RUN")
    assert "no other one was used (" in verdicts["onnx-cuda"]["reason"]
    done = run_cli("check", "--quiet", cwd=digits, env={**wish, "EXPORTER_ONNXRUNTIME_REQUIRED": "true"})
    assert done.returncode == 6
    assert "a required check did not run: parity of onnx-cuda" in done.stderr


def test_a_provider_alone_has_to_run():
    """Where the CPU is not listed nothing else would judge the file."""
    err = EnvironmentLacking("E842", "it did not start", facts={"found": "libcublas.so"})
    alone, beside = (OnnxruntimeConfig(providers=names) for names in (("CUDAExecutionProvider",), ("CUDAExecutionProvider", "CPUExecutionProvider")))
    assert [not_run("parity", "onnx-cuda", err, config).required for config in (alone, beside, beside.replace(required=True))] == [True, False, True]
    assert not_run("parity", "onnx-cuda", err, beside).reason == "it did not start (libcublas.so)"


def test_the_unfused_model_is_captured_where_its_opponent_may_be(monkeypatch):
    """An engine in a CUDA graph races against torch in one, on the same device and in the same precision; whoever has no graph races without."""
    monkeypatch.setattr(Gates, "_unfused", lambda _, precision, **settings: (precision, settings))
    gates = object.__new__(Gates)
    for cuda_graph in (True, False):
        engine = SimpleNamespace(precision="float16", device="cuda", cuda_graph=cuda_graph)
        assert gates._contestant(engine) == ("float16", {"device": "cuda", "cuda_graph": cuda_graph})
    assert gates._contestant(SimpleNamespace(precision="float32", device="cpu")) == ("float32", {"device": "cpu", "cuda_graph": False})
