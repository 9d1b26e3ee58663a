"""How a plan is loaded: code for the host, and the device memory of streamed weights, on the real bindings of each release."""

from __future__ import annotations

import hashlib

import pytest

from exporter.errors import ArtifactError, EngineBuildError

PROFILES = [{"image": [[1, 1, 8, 8], [32, 1, 8, 8], [32, 1, 8, 8]]}]
STREAMABLE_BYTES = 1 << 20
PART_BYTES = STREAMABLE_BYTES // 2 + 1


@pytest.fixture
def load(tmp_path):
    """Return a function that builds a plan with these settings, and loads it as told."""

    def build_and_load(worker, settings, loading):
        onnx, path = tmp_path / "a.onnx", tmp_path / "a.plan"
        onnx.write_bytes(b"onnx")
        given = {"onnx_path": str(onnx), "profiles": PROFILES, "tf32": False, "workspace_bytes": 1 << 20, "optimization_level": 2}
        path.write_bytes(worker.request("build", {**given, "timing_iterations": 8, **settings}, limit_s=60).buffers[0])
        told = {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "loading": loading}
        worker.request("load", told, limit_s=60)
        return worker.request("record", limit_s=60).value

    return build_and_load


def test_code_for_the_host_runs_where_it_is_allowed_alone(release, start, load):
    """A version-compatible plan is loaded where its record allowed its code; else TensorRT refuses it, in its own words."""
    if release.number < (8, 6):
        pytest.skip("TensorRT 8.5 builds no such plan, which test_a_wish_is_fulfilled_or_refused shows")
    with start() as worker:
        record = load(worker, {"version_compatible": True}, {"host_code": True})
        assert record["flags"]["OnnxParserFlag.NATIVE_INSTANCENORM"] is True
        with pytest.raises(ArtifactError, match="host code") as caught:
            load(worker, {"version_compatible": True}, {})
    assert caught.value.code == "E521"


@pytest.mark.parametrize(
    ("asked", "old", "new"),
    [
        (None, None, STREAMABLE_BYTES // 2),
        (PART_BYTES, PART_BYTES, PART_BYTES),
        (1 << 30, -1, STREAMABLE_BYTES),
    ],
    ids=["by TensorRT", "a part", "all"],
)
def test_the_budget_of_streamed_weights(release, start, load, asked, old, new):
    """The budget is set in the way of the release: in bytes from 10.1 on, with -1 for all of them in 10.0."""
    if release.number < (10, 0):
        pytest.skip("TensorRT before 10 streams no weights, which test_a_wish_is_fulfilled_or_refused shows")
    with start() as worker:
        record = load(worker, {"weight_streaming": True}, {"streams_weights": True, "budget_bytes": asked})
    assert record.get("budget") == (new if release.number >= (10, 1) else old)


@pytest.mark.parametrize("is_too_small", [True, False], ids=["too small", "not taken"])
def test_a_budget_that_is_not_taken_is_an_error(release, start, load, is_too_small):
    """What TensorRT does not take, and in 10.0 what is less than it needs, is an error that says how much it takes."""
    if release.number < (10, 0) or (is_too_small and release.number >= (10, 1)):
        pytest.skip("no weights are streamed before TensorRT 10, and every budget is allowed from 10.1 on")
    asked = 1 if is_too_small else PART_BYTES
    with start(budget_refused=not is_too_small) as worker, pytest.raises(EngineBuildError) as caught:
        load(worker, {"weight_streaming": True}, {"streams_weights": True, "budget_bytes": asked})
    assert caught.value.code == "E559"
    assert caught.value.facts["asked for"] == f"{asked} bytes"


def test_a_plan_that_streams_needs_a_release_that_does(release, start, load):
    """A plan whose weights are streamed is refused by name where TensorRT is older, as is one that runs host code."""
    if release.number >= (10, 0):
        pytest.skip("this release streams weights")
    with start() as worker, pytest.raises(EngineBuildError) as caught:
        load(worker, {}, {"streams_weights": True})
    assert caught.value.code == "E546"
