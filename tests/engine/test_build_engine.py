"""The engine stage and its runner, whole, on a stand-in for TensorRT and the GPU (see ``tests/contract``)."""

from __future__ import annotations

import json

import numpy as np
import pytest
from releases import RELEASES

from exporter.artifacts import TensorSpec
from exporter.engine import build_engine, load_plan, parse_profiles, plan_key, probe
from exporter.errors import ArtifactError, EngineBuildError, SampleError
from exporter.runners.base import Runner
from exporter.runners.tensorrt import TensorrtRunner

KEY = "0" * 64
each_release = pytest.mark.parametrize("release", [RELEASES[1], RELEASES[6], RELEASES[-1]], ids=str)
"""The oldest of a small package, the last that could be weakly typed, and the newest."""


@pytest.fixture
def built(config, make_model, tmp_path):
    """A plan that was just built."""
    model = make_model()
    return build_engine(model, tmp_path / "out" / "digits.plan", config, parse_profiles((), model.inputs, batch=32), key=KEY)


def image(batch: int) -> dict[str, np.ndarray]:
    """Return a random input."""
    return {"image": np.random.default_rng(batch).standard_normal((batch, 1, 8, 8), dtype=np.float32)}


def expected(feed) -> np.ndarray:
    """Return what the stand-in's network computes."""
    return feed["image"].reshape(len(feed["image"]), -1).sum(1)[:, None] * np.arange(1, 11)


def files(folder) -> list[str]:
    """Return the names in a folder, without the interpreter of the stand-in."""
    return sorted(path.name for path in folder.glob("*") if not path.name.startswith("python-"))


@each_release
def test_a_plan_has_a_sidecar(built, release, make_model):
    """Beside the plan lies its record: what it was built from, settings, tensors, precision, versions and the GPU, keyed."""
    record = json.loads(built.sidecar_path.read_text())
    content = record["content"]
    assert built.sidecar_path.name == "digits.plan.json"
    assert files(built.path.parent) == ["digits.plan", "digits.plan.json"]
    assert record["sha256"] == built.digest.hex
    assert record["hmac"]
    assert content["provenance"]["made_from"] == {"onnx": str(make_model().digest)}
    assert content["provenance"]["lineage"] == {"checkpoint": "digits.pt", "ema": "ema"}
    assert content["provenance"]["settings"]["tf32"] is False
    assert content["realised_precision"] == {"fp32": 1.0}
    assert content["tensorrt_version"].startswith(release.version)
    assert content["device"]["compute_capability"] == "9.0"
    assert content["profiles"] == [{"image": [[1, 1, 8, 8], [32, 1, 8, 8], [32, 1, 8, 8]]}]
    assert [tensor["name"] for tensor in content["engine_tensors"]] == ["image", "logits"]
    assert content["warnings"] == ["[warning] a warning of the builder"]


def test_a_plan_is_loaded_again(built):
    """What is loaded equals what was built, if the key is the same."""
    assert load_plan(built.path, key=KEY) == built
    assert load_plan(built.path) == built
    assert load_plan(built.path, key="1" * 64) is None


@pytest.mark.parametrize("what", ["plan", "sidecar", "no sidecar", "another machine"])
def test_what_was_tampered_with_is_not_loaded(built, config, what, monkeypatch, tmp_path):
    """A plan or a sidecar that was altered, or written elsewhere, is not used, and the runner refuses it before any worker starts."""
    if what == "plan":
        built.path.write_bytes(built.path.read_bytes() + b" ")
    elif what == "sidecar":
        built.sidecar_path.write_text(built.sidecar_path.read_text().replace('"tf32": false', '"tf32": true'))
    elif what == "no sidecar":
        built.sidecar_path.unlink()
    else:
        monkeypatch.setenv("EXPORTER_STATE_DIR", str(tmp_path / "elsewhere"))
    assert load_plan(built.path) is None
    monkeypatch.setattr("exporter.runners.tensorrt.Worker", None)
    with pytest.raises(ArtifactError), TensorrtRunner(built, config):
        pass


def test_a_plan_replaced_by_another_of_ours_is_refused(built, config, make_model):
    """A runner runs the plan that it was made for, not one that took its place."""
    other = make_model(b"another onnx")
    build_engine(other, built.path, config, parse_profiles((), other.inputs, batch=64), key=KEY)
    with pytest.raises(ArtifactError, match="differs") as caught, TensorrtRunner(built, config):
        pass
    assert caught.value.code == "E723"


@pytest.mark.parametrize("step", ["parser_refuses", "builder_returns_none", "no_device"])
def test_a_build_that_fails_changes_nothing(built, config, make_model, scenario, step):
    """After a failed build the plan and the sidecar of before are there, whole, and nothing else."""
    before = (built.path.read_bytes(), built.sidecar_path.read_bytes())
    scenario(**{step: True})
    model = make_model(b"new")
    with pytest.raises(Exception, match=r"E501|E502|E858"):
        build_engine(model, built.path, config, parse_profiles((), model.inputs, batch=1), key="2" * 64)
    assert (built.path.read_bytes(), built.sidecar_path.read_bytes()) == before
    assert files(built.path.parent) == ["digits.plan", "digits.plan.json"]


@each_release
def test_a_cancelled_build_leaves_nothing(config, make_model, tmp_path, scenario, monkeypatch):
    """A callback that returns False ends the build, with whatever means this release has, and no file is written."""
    monkeypatch.setattr("exporter.trt_worker.client._CANCEL_GRACE_S", 1.0)
    scenario(slow=True)
    model = make_model()
    with pytest.raises(EngineBuildError, match="cancelled") as caught:
        build_engine(model, tmp_path / "out" / "a.plan", config, parse_profiles((), model.inputs, batch=1), key=KEY, progress=lambda *_: False)
    assert caught.value.code == "E503"
    assert not (tmp_path / "out").exists()


def test_an_onnx_file_that_changed_is_refused(config, make_model, tmp_path):
    """An ONNX file with other bytes than when it was exported never reaches the builder."""
    model = make_model()
    model.path.write_bytes(b"something else")
    with pytest.raises(ArtifactError, match="not the one") as caught:
        build_engine(model, tmp_path / "a.plan", config, (), key=KEY)
    assert caught.value.code == "E526"


def test_the_key_changes_with_what_decides_the_plan(config, make_model):
    """ONNX bytes, settings, profiles, versions and GPU change the key; how the worker is started does not."""
    model, support = make_model(), probe(config)
    profiles = parse_profiles((), model.inputs, batch=32)
    key = plan_key(model.digest, config, profiles, support)
    same = config.replace(timeout_s=1.0, required=True, python="")
    assert plan_key(model.digest, same, profiles, support) == key
    keys = {
        key,
        plan_key(make_model(b"new").digest, config, profiles, support),
        plan_key(model.digest, config.replace(tf32=True), profiles, support),
        plan_key(model.digest, config, parse_profiles((), model.inputs, batch=64), support),
    }
    assert len(keys) == 4


@each_release
def test_the_runner_runs(built, config):
    """The runner follows the protocol, returns outputs by name, and loads in measured time."""
    with TensorrtRunner(built, config) as runner:
        assert isinstance(runner, Runner)
        assert (runner.name, runner.precision, runner.device, runner.threads) == ("tensorrt", "float32", "cuda", None)
        assert runner.load_ms > 0
        for batch in (1, 32, 5):
            feed = image(batch)
            outputs = runner.infer(feed)
            assert list(outputs) == ["logits"]
            np.testing.assert_allclose(outputs["logits"], expected(feed), rtol=1e-5, atol=1e-4)


@each_release
def test_the_runner_times_two_prepared_calls(built, config):
    """Two prepared calls of different batches alternate, and each gives one device time per iteration."""
    with TensorrtRunner(built, config) as runner:
        calls = [runner.prepare(image(batch)) for batch in (1, 32)]
        for _ in range(3):
            for call in calls:
                times = call.run_block(7)
                assert (times.shape, times.dtype) == ((7,), np.float64)
                assert (times > 0).all()
        assert calls[0].clock == "cuda events"


@pytest.mark.parametrize(
    ("feed", "code"),
    [
        ({}, "E611"),
        ({"imge": np.zeros((1, 1, 8, 8), np.float32)}, "E611"),
        ({"image": np.zeros((1, 1, 8, 8))}, "E613"),
        ({"image": np.zeros((33, 1, 8, 8), np.float32)}, "E525"),
    ],
    ids=["missing", "name", "dtype", "outside the profile"],
)
def test_the_runner_refuses_what_does_not_fit(built, config, feed, code):
    """A feed that does not fit is an error with both sides, and the runner goes on."""
    with TensorrtRunner(built, config) as runner:
        with pytest.raises(SampleError) as caught:
            runner.infer(feed)
        assert caught.value.code == code
        assert runner.infer(image(2))["logits"].shape == (2, 10)


def test_an_output_that_is_not_written_is_nan(built, config, scenario):
    """What the engine leaves out comes back as NaN, never as what was there before."""
    with TensorrtRunner(built, config) as runner:
        runner.infer(image(4))
    scenario(row_unwritten=True)
    with TensorrtRunner(built, config) as runner:
        logits = runner.infer(image(4))["logits"]
    assert np.isnan(logits[3]).all()
    assert np.isfinite(logits[:3]).all()


@each_release
def test_integers_have_the_dtype_of_the_model(config, make_model, scenario, tmp_path):
    """TensorRT 8 computes int64 as int32; the runner gives back what the ONNX model declares."""
    scenario(engine={"output_dtype": "INT32"})
    model = make_model(outputs=(TensorSpec("logits", ("batch", 10), "int64"),))
    plan = build_engine(model, tmp_path / "a.plan", config, parse_profiles((), model.inputs, batch=4), key=KEY)
    with TensorrtRunner(plan, config) as runner:
        assert runner.infer(image(2))["logits"].dtype == np.int64


def test_a_runner_outside_with_is_an_error(built, config):
    """Without ``with`` there is no engine, and the message says how to have one."""
    with pytest.raises(EngineBuildError, match="no engine is loaded") as caught:
        TensorrtRunner(built, config).infer(image(1))
    assert "with statement" in caught.value.help
