"""Debug tensors on real bindings: marked in the network, handed to our listener through its virtual function, copied in the middle of the call."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from releases import RELEASES

from exporter.errors import EngineBuildError
from exporter.trt_worker import pack_arrays, unpack_arrays

FIRST = (10, 12)
newest = pytest.mark.parametrize("release", [RELEASES[-1]], ids=str)
PROFILES = [{"image": [[1, 1, 8, 8], [8, 1, 8, 8], [8, 1, 8, 8]]}]
IMAGE = np.random.default_rng(0).standard_normal((4, 1, 8, 8), dtype=np.float32)
ROWS = IMAGE.reshape(4, -1).sum(1)[:, None]


@pytest.fixture
def arguments(tmp_path):
    """Arguments of a build with debug tensors."""
    onnx = tmp_path / "digits.onnx"
    onnx.write_bytes(b"not read by the stand-in")
    settings = {"tf32": False, "workspace_bytes": 64 << 20, "optimization_level": 2, "timing_iterations": 8}
    return {"onnx_path": str(onnx), "profiles": PROFILES, **settings, "debug_tensors": True}


@pytest.fixture
def observe(arguments, tmp_path):
    """Return a function that builds, loads and looks inside; it returns what is told of the tensors, the values, and the nodes."""

    def ask(worker, **changed):
        plan = bytes(worker.request("build", {**arguments, **changed}, limit_s=60).buffers[0])
        path = tmp_path / "digits.plan"
        path.write_bytes(plan)
        worker.request("load", {"path": str(path), "sha256": hashlib.sha256(plan).hexdigest()}, limit_s=60)
        specs, buffers = pack_arrays({"image": IMAGE})
        reply = worker.request("observe", {"arrays": specs}, buffers, limit_s=60)
        return reply.value["tensors"], unpack_arrays(reply.value["arrays"], reply.buffers), reply.value["nodes"]

    return ask


def test_tensors_come_in_order_or_the_setting_is_refused(release, start, observe):
    """A release that has them hands them out with name, dtype and shape, and calls after it hand out nothing; an older one refuses the setting."""
    told = [{"name": "flat", "of": "image"}, {"name": "row_sums"}]
    with start(debug_tensors=told) as worker:
        if release.number < FIRST:
            with pytest.raises(EngineBuildError, match="does not have what a setting asks for") as caught:
                observe(worker)
            assert (caught.value.code, caught.value.facts["expected"]) == ("E546", "TensorRT 10.12 or newer")
            return
        tensors, values, _ = observe(worker)
        specs, buffers = pack_arrays({"image": IMAGE})
        worker.request("infer", {"arrays": specs}, buffers, limit_s=60)
        found = worker.request("record", limit_s=60).value
    assert [(tensor["name"], tensor["dtype"], tensor["shape"], tensor["unread"]) for tensor in tensors] == [
        ("flat", "FLOAT", [4, 64], ""),
        ("row_sums", "FLOAT", [4, 1], ""),
    ]
    np.testing.assert_array_equal(values["flat"], IMAGE.reshape(4, -1))  # its memory held something else right after the call
    np.testing.assert_allclose(values["row_sums"], ROWS, rtol=1e-6)
    assert found["LiveBlocks"] == 0
    assert 0 not in found["streams"]


def test_without_the_setting_nothing_is_marked(release, start, observe, arguments):
    """A plain build has no marks; looking into such an engine gives nothing, or is refused where a release has nothing to look with."""
    with start() as worker:
        worker.request("build", {**arguments, "debug_tensors": False}, limit_s=60)
        assert "marked" not in worker.request("record", limit_s=60).value
        if release.number < FIRST:
            with pytest.raises(EngineBuildError, match="debug_tensors") as caught:
                observe(worker, debug_tensors=False)
            assert caught.value.code == "E546"
            return
        assert observe(worker, debug_tensors=False)[:2] == ([], {})


@newest
def test_what_is_not_read_is_named(release, start, observe):
    """Narrow types, unknown shapes, a second writing and what has no room are told with the reason; bfloat16 comes as float32, host memory too."""
    told = [
        {"name": "narrow", "dtype": "FP8"},
        {"name": "brain", "dtype": "BF16", "times": 1e3},
        {"name": "host", "location": "HOST"},
        {"name": "host", "times": 2.0},
        {"name": "unknown", "shape": [-1, 1]},
        {"name": "huge", "shape": [1 << 20, 1 << 20]},
        {"name": "half", "dtype": "HALF", "stored": "float16"},
        {"name": "none", "shape": [0, 3]},
    ]
    with start(debug_tensors=told) as worker:
        tensors, values, _ = observe(worker)
    assert [tensor["unread"].partition(" (")[0] for tensor in tensors] == [
        "FP8 is not read", "", "", "it was written before", "its shape is not known", "no room for it beside the others", "", "",
    ]  # fmt: skip
    np.testing.assert_allclose(values["brain"], ROWS * 1e3, rtol=2.0**-7)
    np.testing.assert_allclose(values["host"], ROWS, rtol=1e-6)
    np.testing.assert_allclose(values["half"], ROWS, rtol=1e-3, atol=1e-3)
    assert values["none"].shape == (0, 3)


@newest
def test_the_nodes_of_a_tensor_come_from_the_inspector(release, start, observe):
    """A layer's metadata names the ONNX nodes that it was made from."""
    layer = {"Name": "__myl_out", "LayerType": "Myelin", "Metadata": "[ONNX Layer: /a/Conv]\x1e[ONNX Layer: /a[0]/Relu]"}
    with start(inspected=[layer, {"Name": "copy", "LayerType": "Reformat", "Metadata": ""}]) as worker:
        assert observe(worker)[2] == {"__myl_out": ["/a/Conv", "/a[0]/Relu"]}


@newest
@pytest.mark.parametrize(
    ("scenario", "code", "text"),
    [
        pytest.param({"marks_refused": True}, "E502", "mark_unfused_tensors_as_debug_tensors", id="marks refused"),
        pytest.param({"listener_refused": True}, "E522", "set_debug_listener", id="listener refused"),
        pytest.param({"debugging_refused": True}, "E522", "unfused_tensors_debug_state", id="state refused"),
        pytest.param({"debug_tensors": [{"name": "rows", "stream": 0}]}, "E523", "cuMemcpyDtoHAsync_v2", id="copy fails"),
        pytest.param({"debug_tensors": [{"name": "rows", "shape": [0] + [1 << 62] * 7}]}, "E527", "ValueError", id="callback raises"),
        pytest.param({"enqueue_fails": True}, "E522", "execute_async_v3", id="call fails"),
    ],
)
def test_each_failure_is_an_error(release, start, observe, scenario, code, text):
    """What TensorRT refuses is named, and what goes wrong inside of the callback, where it would be printed and lost, is raised after the call."""
    with start(**scenario) as worker:
        with pytest.raises(EngineBuildError) as caught:
            observe(worker)
        if code != "E502":
            assert worker.request("record", limit_s=60).value["LiveBlocks"] == 0
    assert caught.value.code == code
    assert text in str(caught.value) + str(caught.value.facts)
