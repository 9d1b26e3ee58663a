"""Calls in CUDA graphs, outputs whose shape depends on the data, tensors on the host, calls that are run twice: on real bindings and the stand-in.

The stand-in's context captures and replays as the library does, and it asks for memory through the virtual functions of the real bindings. What
only a GPU can show is in ``tests/gpu``.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from releases import RELEASES

from exporter.errors import EngineBuildError, ModelNotSupported
from exporter.trt_worker import pack_arrays, unpack_arrays

old_and_new = pytest.mark.parametrize("release", [RELEASES[1], RELEASES[-1]], ids=str)
"""For what does not depend on the release beyond how it calls an allocator."""
PROFILES = [{"image": [[1, 1, 8, 8], [32, 1, 8, 8], [32, 1, 8, 8]]}, {"image": [[64, 1, 8, 8], [64, 1, 8, 8], [128, 1, 8, 8]]}]


@pytest.fixture
def load(tmp_path):
    """Return a function that loads a plan in a worker."""

    def enter(worker, **facts):
        path = tmp_path / "digits.plan"
        path.write_text(json.dumps({"profiles": PROFILES, **facts}))
        worker.request("load", {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}, limit_s=60)

    return enter


def feed(batch: int, **more) -> dict[str, np.ndarray]:
    """Return a random input."""
    return {"image": np.random.default_rng(batch).standard_normal((batch, 1, 8, 8), dtype=np.float32), **more}


def expected(arrays, columns: int = 10) -> np.ndarray:
    """Return what the stand-in's network computes."""
    return arrays["image"].reshape(len(arrays["image"]), -1).sum(1)[:, None] * np.arange(1, columns + 1)


def positive(arrays) -> np.ndarray:
    """Return what it computes where its output depends on the data."""
    rows = expected(arrays)
    return rows[rows[:, 0] > 0]


def infer(worker, arrays, **arguments):
    """Run once in the worker; return outputs, and what was not the same twice."""
    specs, buffers = pack_arrays(arrays)
    reply = worker.request("infer", {"arrays": specs, **arguments}, buffers, limit_s=60)
    return unpack_arrays(reply.value["arrays"], reply.buffers), reply.value["unlike"]


def prepare(worker, arrays, wish):
    """Place inputs in fixed buffers; return the number of the call and how it is launched."""
    specs, buffers = pack_arrays(arrays)
    value = worker.request("prepare", {"arrays": specs, "cuda_graph": wish}, buffers, limit_s=60).value
    return value["prepared"], value["launch"]


def time(worker, number, iterations=5):
    """Time a block; return how it was launched."""
    return worker.request("time", {"prepared": number, "iterations": iterations}, limit_s=60).value["launch"]


def record(worker):
    """Return what was asked of the library and the driver."""
    return worker.request("record", limit_s=60).value


@pytest.mark.parametrize("wish", ["auto", "always"])
def test_a_timed_call_is_captured(release, start, load, wish):
    """The call is run once, captured, replayed once for comparison; a block then launches the graph and enqueues nothing."""
    with start() as worker:
        load(worker)
        number, launch = prepare(worker, feed(4), wish)
        before = record(worker)
        assert time(worker, number, 25) == launch == "cuda graph"
        after = record(worker)
        worker.request("release", {"prepared": number}, limit_s=60)
        end = record(worker)
    assert len(before["streams"]) == len(after["streams"]) == 2  # once plainly, once captured
    assert (before["Launches"], after["Launches"]) == (1, 26)
    assert (before["LiveGraphs"], end["LiveGraphs"], end["LiveBlocks"], end["LiveEvents"]) == (1, 0, 0, 0)
    assert 0 not in after["streams"]


def test_without_the_wish_nothing_is_captured(release, start, load):
    """``never`` times plain calls, and says so."""
    with start() as worker:
        load(worker)
        number, launch = prepare(worker, feed(4), "never")
        assert time(worker, number, 25) == launch == "enqueue"
        assert (record(worker)["Launches"], len(record(worker)["streams"])) == (0, 25)


def test_a_graph_belongs_to_its_shapes(release, start, load):
    """After another call, in another profile, the first one's graph is captured anew; none is launched for shapes that it was not made from."""
    with start() as worker:
        load(worker)
        numbers = [prepare(worker, feed(batch), "auto")[0] for batch in (4, 128)]
        infer(worker, feed(7))
        for number in (*numbers, *numbers):
            assert time(worker, number) == "cuda graph"
        found = record(worker)
        worker.request("unload", limit_s=60)
        end = record(worker)
    assert "a stale graph was launched" not in found["calls"]
    assert found["LiveGraphs"] == 1
    assert (end["LiveGraphs"], end["LiveBlocks"], end["LiveStreams"]) == (0, 0, 0)


REFUSALS = [
    pytest.param({"capture_refused": True}, "", "execute_async_v3 returned False: [warning] operation not permitted in a capture", id="enqueue"),
    pytest.param({"replay_differs": True}, "", "its replay gives other outputs than a plain call", id="replay"),
    pytest.param({}, "cuStreamBeginCapture_v2", "cuStreamBeginCapture_v2: error 801", id="begin"),
    pytest.param({}, "cuStreamEndCapture", "cuStreamEndCapture: error 901", id="end"),
    pytest.param({}, "cuGraphInstantiateWithFlags", "cuGraphInstantiateWithFlags: error 801", id="instantiate"),
    pytest.param({}, "cuGraphLaunch", "cuGraphLaunch: error 719", id="launch"),
    pytest.param({"data_dependent": True}, "", "the shape of logits depends on the data", id="data-dependent output"),
]


@old_and_new
@pytest.mark.parametrize(("scenario", "step", "found"), REFUSALS)
def test_where_capture_fails_plain_calls_are_timed(release, start, load, monkeypatch, scenario, step, found):
    """Each way in which a capture can fail leads to plain calls with the reason, leaves no graph, and the engine computes as before."""
    monkeypatch.setenv("FAKE_CUDA_GRAPH_STEP", step)
    with start(**scenario) as worker:
        load(worker)
        arrays = feed(4)
        number, launch = prepare(worker, arrays, "auto")
        assert launch.startswith(f"enqueue ({found}")
        before = record(worker)
        assert time(worker, number, 25) == launch
        after = record(worker)
        outputs, _ = infer(worker, arrays)
    assert len(after["streams"]) - len(before["streams"]) == 25
    assert after["LiveGraphs"] == 0
    np.testing.assert_allclose(outputs["logits"], positive(arrays) if "data_dependent" in scenario else expected(arrays), rtol=1e-5, atol=1e-4)


@old_and_new
@pytest.mark.parametrize(("scenario", "step", "found"), REFUSALS)
def test_where_capture_is_required_its_failure_is_an_error(release, start, load, monkeypatch, scenario, step, found):
    """``always`` ends with the reason, gives everything back, and the worker lives on."""
    monkeypatch.setenv("FAKE_CUDA_GRAPH_STEP", step)
    with start(**scenario) as worker:
        load(worker)
        with pytest.raises(EngineBuildError, match="cannot be captured") as caught:
            prepare(worker, feed(4), "always")
        end = record(worker)
        assert prepare(worker, feed(4), "never")[1] == "enqueue"
    assert caught.value.code == "E548"
    assert caught.value.facts["found"].startswith(found)
    assert (end["LiveGraphs"], end["LiveBlocks"]) == (0, 0)


def test_a_call_is_captured_for_inference_too(release, start, load):
    """On request the outputs that are judged come from the replay of a graph."""
    with start() as worker:
        load(worker)
        arrays = feed(4)
        outputs, unlike = infer(worker, arrays, cuda_graph="always", twice=True)
        found = record(worker)
    np.testing.assert_allclose(outputs["logits"], expected(arrays), rtol=1e-5, atol=1e-4)
    assert (unlike, found["Launches"], found["LiveGraphs"]) == ({}, 3, 0)


def test_an_output_whose_shape_depends_on_the_data_has_its_true_shape(release, start, load):
    """However many rows there are, none or more than before, they come back as they are, in any order of calls, and nothing stays behind."""
    with start(data_dependent=True) as worker:
        load(worker)
        nothing = {"image": -np.abs(feed(5)["image"])}
        for arrays in (feed(4), feed(128), nothing, feed(32)):
            outputs, unlike = infer(worker, arrays, twice=True)
            assert outputs["logits"].shape == positive(arrays).shape
            np.testing.assert_allclose(outputs["logits"], positive(arrays), rtol=1e-5, atol=1e-4)
            assert unlike == {}
        found = record(worker)
    assert found["calls"][:2] == ["allocator logits", "no allocator logits"]
    assert (found["LiveBlocks"], found["LiveGraphs"]) == (0, 0)


def test_prepared_calls_with_such_outputs_take_turns(release, start, load):
    """Each call has an allocator of its own, and the context knows that of the call that runs."""
    with start(data_dependent=True) as worker:
        load(worker)
        numbers = [prepare(worker, feed(batch), "auto")[0] for batch in (4, 128)]
        for number in (*numbers, *numbers):
            assert "depends on the data" in time(worker, number)
        worker.request("unload", limit_s=60)
        end = record(worker)
    assert (end["LiveBlocks"], end["LiveEvents"], end["LiveStreams"]) == (0, 0, 0)


@old_and_new
@pytest.mark.parametrize(
    ("scenario", "memory", "code", "text"),
    [
        pytest.param({"shape_untold": True}, "", "E549", "no shape", id="no shape"),
        pytest.param({"allocator_refused": True}, "", "E522", "set_output_allocator", id="allocator refused"),
        pytest.param({}, "34000", "E523", "CUDA_ERROR_OUT_OF_MEMORY", id="out of memory"),
    ],
)
def test_each_failure_of_such_an_output_is_an_error(release, start, load, monkeypatch, scenario, memory, code, text):
    """A shape that is never told, an allocator that is refused, and memory that runs out in the middle of a call, each by its own name."""
    if memory:
        monkeypatch.setenv("FAKE_CUDA_MEMORY", memory)
    with start(data_dependent=True, **scenario) as worker:
        load(worker)
        with pytest.raises(EngineBuildError) as caught:
            infer(worker, {"image": np.abs(feed(128)["image"])})
        assert record(worker)["LiveBlocks"] == 0
    assert caught.value.code == code
    assert text in str(caught.value)


@old_and_new
@pytest.mark.parametrize("data_dependent", [False, True], ids=["fixed", "data-dependent"])
@pytest.mark.parametrize("dtype", ["FLOAT", "INT32"])
def test_what_is_not_written_is_seen(release, start, load, dtype, data_dependent):
    """In whole numbers too: elements that hold what the memory was filled with, another byte each time, were not written."""
    with start(row_unwritten=True, data_dependent=data_dependent) as worker:
        load(worker, output_dtype=dtype)
        arrays = {"image": np.abs(feed(4)["image"])}
        outputs, unlike = infer(worker, arrays, twice=True)
    assert unlike == {"logits": {"differing": 10, "unwritten": 10}}
    assert np.isnan(outputs["logits"][3]).all() if dtype == "FLOAT" else (outputs["logits"][3] == -1).all()


@old_and_new
def test_a_call_that_is_not_the_same_twice_is_seen(release, start, load):
    """An engine whose result changes from call to call is found out; its graph is not taken, since one cannot tell whether it computes the same."""
    with start(unsteady=True) as worker:
        load(worker)
        assert infer(worker, feed(4), twice=True)[1] == {"logits": {"differing": 40, "unwritten": 0}}
        assert infer(worker, feed(4))[1] == {}
        assert prepare(worker, feed(4), "auto")[1] == "enqueue (its replay gives other outputs than a plain call)"


def test_tensors_on_the_host_lie_there(release, start, load):
    """An input that decides shapes is given on the host before shapes are computed, and an output that TensorRT keeps on the host is read there."""
    with start(shape_input=True) as worker:
        load(worker)
        for batch, columns in ((4, 3), (128, 10), (4, 1)):
            arrays = feed(batch, columns=np.array([columns], np.int32))
            outputs, unlike = infer(worker, arrays, twice=True)
            np.testing.assert_allclose(outputs["logits"], expected(arrays, columns), rtol=1e-5, atol=1e-4)
            assert outputs["rows"].tolist() == [batch]
            assert unlike == {}
        number, launch = prepare(worker, feed(4, columns=np.array([3], np.int32)), "auto")
        assert time(worker, number) == launch == "cuda graph"
        worker.request("unload", limit_s=60)
        assert record(worker)["LiveBlocks"] == 0


def test_an_input_that_decides_shapes_on_the_device_is_refused(release, start, load):
    """Where TensorRT wants it on the device, its values are not known beforehand."""
    with start(shape_inference_io=True) as worker, pytest.raises(ModelNotSupported, match="decides shapes") as caught:
        load(worker)
    assert (caught.value.code, caught.value.facts) == ("E524", {"input": "image"})


def test_a_profile_that_cannot_be_set_is_an_error(release, start, load):
    """The bindings raise where the library returns False: that is no crash of the worker."""
    with start(profile_raises=True) as worker:
        load(worker)
        with pytest.raises(EngineBuildError, match="set_optimization_profile_async") as caught:
            infer(worker, feed(128))
        assert caught.value.code == "E522"
        assert infer(worker, feed(4))[0]["logits"].shape == (4, 10)
