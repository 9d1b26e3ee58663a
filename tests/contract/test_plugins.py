"""Plugins: TensorRT's own once, and libraries by their paths, on the real bindings of each release."""

from __future__ import annotations

import hashlib

import pytest

from exporter.errors import ArtifactError, EngineBuildError

PROFILES = [{"image": [[1, 1, 8, 8], [32, 1, 8, 8], [32, 1, 8, 8]]}]


@pytest.fixture
def arguments(tmp_path):
    """Arguments of a build that needs a library."""
    onnx, library = tmp_path / "a.onnx", tmp_path / "libfoo.so"
    onnx.write_bytes(b"onnx")
    library.write_bytes(b"the stand-in runs nothing of it")
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    return {
        "onnx_path": str(onnx), "profiles": PROFILES, "tf32": False, "workspace_bytes": 1 << 20, "optimization_level": 2, "timing_iterations": 8,
        "plugins": [{"path": str(library), "sha256": digest}],
    }  # fmt: skip


def test_a_library_is_registered_once(release, start, arguments, tmp_path):
    """TensorRT's own plugins come first and once, then the library, once for a build and a load in one process."""
    with start() as worker:
        if release.number < (8, 6):
            with pytest.raises(EngineBuildError) as caught:
                worker.request("build", arguments, limit_s=60)
            assert caught.value.code == "E546"
            return
        plan = tmp_path / "a.plan"
        plan.write_bytes(worker.request("build", arguments, limit_s=60).buffers[0])
        told = {"path": str(plan), "sha256": hashlib.sha256(plan.read_bytes()).hexdigest(), "plugins": arguments["plugins"]}
        worker.request("load", told, limit_s=60)
        assert worker.request("record", limit_s=60).value["plugins"] == ["own ''", arguments["plugins"][0]["path"]]


@pytest.mark.parametrize(("scenario", "text"), [("plugin_refused", "is registered already"), ("own_plugins_fail", "init_libnvinfer_plugins")])
def test_a_library_that_is_not_taken_is_an_error(release, start, arguments, scenario, text):
    """None and False are an error with what they can mean; a build that names no library goes on without TensorRT's own plugins."""
    if release.number < (8, 6):
        pytest.skip("TensorRT 8.5 loads no libraries, which test_a_library_is_registered_once shows")
    with start(**{scenario: True}) as worker:
        with pytest.raises(EngineBuildError) as caught:
            worker.request("build", arguments, limit_s=60)
        worker.request("build", {**arguments, "plugins": []}, limit_s=60)
    assert caught.value.code == "E558"
    assert text in caught.value.facts["found"]


def test_a_library_with_other_bytes_is_not_loaded(release, start, arguments):
    """The digest is compared in the worker, right before the library would run."""
    if release.number < (8, 6):
        pytest.skip("TensorRT 8.5 loads no libraries, which test_a_library_is_registered_once shows")
    arguments["plugins"][0]["sha256"] = "0" * 64
    with start() as worker:
        with pytest.raises(ArtifactError) as caught:
            worker.request("build", arguments, limit_s=60)
        assert worker.request("record", limit_s=60).value["plugins"] == ["own ''"]
    assert caught.value.code == "E557"
