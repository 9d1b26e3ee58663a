"""``exporter inspect`` of a plan."""

from __future__ import annotations

import json

import pytest

from exporter.engine import build_engine, layers_of, parse_profiles, read_sidecar
from exporter.errors import ArtifactError
from exporter.records import write_record


@pytest.fixture
def built(config, make_model, tmp_path):
    """A plan that was just built."""
    model = make_model()
    return build_engine(model, tmp_path / "digits.plan", config, parse_profiles((), model.inputs, batch=32), key="0" * 64)


def test_a_plan_is_shown_from_its_sidecar(built, run_cli):
    """Everything of the sidecar is shown, on a machine without TensorRT; nothing is loaded."""
    done = run_cli("inspect", built.path)
    assert done.returncode == 0, done.stderr
    for text in (
        built.digest.hex,
        "checkpoint: digits.pt",
        "image  float32 [batch, 1, 8, 8]",
        "0: image 1x1x8x8 .. 32x1x8x8 .. 32x1x8x8",
        "fp32 100%",
        "a warning of the builder",
    ):
        assert text in done.stdout
    shown = json.loads(run_cli("inspect", built.path, "--json", "--quiet").stdout)
    assert (shown["sha256"], shown["profiles"]) == (built.digest.hex, [{"image": [[1, 1, 8, 8], [32, 1, 8, 8], [32, 1, 8, 8]]}])
    assert "layers" not in shown


def test_layers_come_from_the_worker(built, config, run_cli):
    """With ``--layers`` the engine is loaded in the worker that the settings name."""
    done = run_cli("inspect", built.path, "--layers", "--json", "--quiet", env={"EXPORTER_TENSORRT_PYTHON": config.python})
    assert json.loads(done.stdout)["layers"] == layers_of(built, config) == {"conv": "fp32", "head": "fp32"}


def test_a_plan_from_elsewhere_is_not_opened(built, run_cli):
    """A plan is executable: without a sidecar of ours nothing of it is shown, let alone loaded."""
    built.sidecar_path.unlink()
    done = run_cli("inspect", built.path, "--layers")
    assert done.returncode == 4
    assert "E721" in done.stderr


def test_the_record_of_something_else_is_no_sidecar(tmp_path):
    """A record of ours for another kind of file is refused."""
    path = tmp_path / "a.plan"
    path.write_bytes(b"weights")
    write_record(path, key="", content={"kind": "weights"})
    with pytest.raises(ArtifactError, match="no plan") as caught:
        read_sidecar(path)
    assert caught.value.code == "E521"
