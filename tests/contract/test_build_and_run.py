"""The worker's real code for building and running, in a real process, on the real bindings of each release, with guarded fakes.

It checks the shape of the API, the order of calls, and what is done with each way in which TensorRT tells of failure. What only a GPU can
show is in ``tests/gpu``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json

import numpy as np
import pytest

from exporter.errors import ArtifactError, EngineBuildError, ModelNotSupported, NoGpu, SampleError
from exporter.trt_worker import pack_arrays, unpack_arrays
from exporter.trt_worker.serving.building import check_precision

PROFILES = [{"image": [[1, 1, 8, 8], [32, 1, 8, 8], [32, 1, 8, 8]]}, {"image": [[64, 1, 8, 8], [64, 1, 8, 8], [128, 1, 8, 8]]}]


@pytest.fixture
def request_arguments(tmp_path):
    """Arguments of a build."""
    onnx = tmp_path / "digits.onnx"
    onnx.write_bytes(b"not read by the stand-in")
    return {"onnx_path": str(onnx), "profiles": PROFILES, "tf32": False, "workspace_bytes": 64 << 20, "optimization_level": 2, "timing_iterations": 8}


def major(release) -> int:
    """Return the release's major version."""
    return int(release.version.split(".")[0])


def feed(batch: int) -> dict[str, np.ndarray]:
    """Return a random input."""
    return {"image": np.random.default_rng(batch).standard_normal((batch, 1, 8, 8), dtype=np.float32)}


def expected(arrays) -> np.ndarray:
    """Return what the stand-in's network computes."""
    return arrays["image"].reshape(len(arrays["image"]), -1).sum(1)[:, None] * np.arange(1, 11)


def infer(worker, arrays):
    """Run once in the worker."""
    specs, buffers = pack_arrays(arrays)
    reply = worker.request("infer", {"arrays": specs}, buffers, limit_s=60)
    return unpack_arrays(reply.value["arrays"], reply.buffers)


@pytest.fixture
def loaded(start, request_arguments, tmp_path):
    """Return a function that builds, loads and returns the worker, in the with statement of the test."""

    def enter(worker):
        plan = bytes(worker.request("build", request_arguments, limit_s=60).buffers[0])
        path = tmp_path / "digits.plan"
        path.write_bytes(plan)
        return worker.request("load", {"path": str(path), "sha256": hashlib.sha256(plan).hexdigest()}, limit_s=60).value

    return enter


def test_build(release, start, request_arguments):
    """A build sets everything that decides a plan, in the way of this release, and tells what it did."""
    seen = []
    with start() as worker:
        reply = worker.request("build", request_arguments, limit_s=60, progress=lambda *step: seen.append(step) or True)
        record = worker.request("record", limit_s=60).value
    facts = reply.value
    strongly_typed = major(release) >= 10
    assert facts["tensorrt_version"].startswith(release.version.rpartition(".post")[0] or release.version)
    assert facts["sha256"] == hashlib.sha256(reply.buffers[0]).hexdigest()
    assert facts["strongly_typed"] == strongly_typed
    assert facts["precision_shares"] == {"fp32": 1.0}
    assert facts["warnings"] == ["[warning] a warning of the builder"]
    assert [(t["name"], t["is_input"], t["dtype"], t["shape"]) for t in facts["tensors"]] == [
        ("image", True, "FLOAT", [-1, 1, 8, 8]),
        ("logits", False, "FLOAT", [-1, 10]),
    ]
    # STRONGLY_TYPED is bit 1 in TensorRT 10 and bit 0 in TensorRT 11; EXPLICIT_BATCH is bit 0 in TensorRT 8
    assert record["network_flags"] == {8: 0b1, 10: 0b10, 11: 0b1}[major(release)]
    assert record["flags"] == {"BuilderFlag.TF32": False}
    assert record["pool"] == ["MemoryPoolType.WORKSPACE", 64 << 20]
    assert record["set"]["avg_timing_iterations"] == 8
    assert record["set"].get("builder_optimization_level") == (2 if release.number >= (8, 6) else None)
    assert record["set"]["profiling_verbosity"] == "ProfilingVerbosity.DETAILED"
    assert record["profiles"] == PROFILES
    assert record["has_monitor"] == strongly_typed
    phases = [phase for phase, _, _ in seen]
    assert phases[:2] == ["parse", "parse"]
    assert phases[-1] == "inspect"
    assert ("Timing graph nodes" in phases) == strongly_typed


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_stated(release, start, request_arguments, tf32):
    """TF32 is on in TensorRT by default; a build says it either way."""
    with start() as worker:
        worker.request("build", {**request_arguments, "tf32": tf32}, limit_s=60)
        assert worker.request("record", limit_s=60).value["flags"] == {"BuilderFlag.TF32": tf32}


def test_a_timing_cache_goes_in_and_comes_back(release, start, request_arguments):
    """What was measured comes back after a build, and is taken up by the next one; TensorRT is never told to overlook a mismatch."""
    with start() as worker:
        first = worker.request("build", {**request_arguments, "timing_cache": True}, (b"",), limit_s=60)
        second = worker.request("build", {**request_arguments, "timing_cache": True}, (first.buffers[1],), limit_s=60)
        without = worker.request("build", request_arguments, limit_s=60)
    assert [reply.value["timing_cache"] for reply in (first, second, without)] == ["new", "taken up", "none"]
    assert [json.loads(bytes(reply.buffers[1]))["tactics"] for reply in (first, second)] == [2, 4]
    assert len(without.buffers) == 1


def test_a_timing_cache_of_another_version_is_left_aside(release, start, request_arguments):
    """A cache that TensorRT refuses is begun anew, and the facts say so."""
    with start() as worker:
        reply = worker.request("build", {**request_arguments, "timing_cache": True}, (b'{"version": "9.9", "tactics": 7}',), limit_s=60)
    assert reply.value["timing_cache"] == "refused"
    assert json.loads(bytes(reply.buffers[1]))["tactics"] == 2


def test_refit_is_a_flag(release, start, request_arguments):
    """A plan that is to take new weights is built with the flag for it."""
    with start() as worker:
        worker.request("build", {**request_arguments, "refittable": True}, limit_s=60)
        assert worker.request("record", limit_s=60).value["flags"] == {"BuilderFlag.TF32": False, "BuilderFlag.REFIT": True}


@pytest.mark.parametrize(
    ("wish", "first", "name"),
    [
        ({"strict_nans": True}, (10, 6), "BuilderFlag.STRICT_NANS"),
        ({"stripped": True}, (10, 0), "BuilderFlag.REFIT"),
        ({"batch_invariant": True}, (10, 12), "BuilderFlag.DISTRIBUTIVE_INDEPENDENCE"),
        ({"version_compatible": True}, (8, 6), "BuilderFlag.VERSION_COMPATIBLE"),
        ({"weight_streaming": True}, (10, 0), "BuilderFlag.WEIGHT_STREAMING"),
        ({"hardware_compatibility": "ampere_plus"}, (8, 6), "HardwareCompatibilityLevel.AMPERE_PLUS"),
        ({"hardware_compatibility": "same_compute_capability"}, (10, 9), "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY"),
    ],
    ids=["strict nans", "stripped", "batch invariant", "versions", "weight streaming", "ampere", "same compute capability"],
)
def test_a_wish_is_fulfilled_or_refused(release, start, request_arguments, wish, first, name):
    """What a release has is set; what it does not have is refused with the release that has it, never left out in silence."""
    with start() as worker:
        if release.number >= first:
            worker.request("build", {**request_arguments, **wish}, limit_s=60)
            record = worker.request("record", limit_s=60).value
            assert name in {flag for flag, is_set in record["flags"].items() if is_set} | {record["set"].get("hardware_compatibility_level")}
            return
        with pytest.raises(EngineBuildError, match="does not have what a setting asks for") as caught:
            worker.request("build", {**request_arguments, **wish}, limit_s=60)
    assert caught.value.code == "E546"
    assert caught.value.facts["expected"] == f"TensorRT {first[0]}.{first[1]} or newer"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_precision_is_asked_for_and_read_back(release, start, request_arguments, precision):
    """Before TensorRT 10 float16 and int8 are flags of the builder, from then on they are in the network; the layers have to have them either way."""
    with start(layer_dtype=precision.upper()) as worker:
        facts = worker.request("build", {**request_arguments, "precision": precision}, limit_s=60).value
        flags = worker.request("record", limit_s=60).value["flags"]
    assert facts["precision_shares"] == {precision: 1.0}
    for flag in ("FP16", "INT8"):
        assert flags.get(f"BuilderFlag.{flag}") == (True if precision == flag.lower() and major(release) < 10 else None)


def test_fp8_is_in_the_network_from_tensorrt_10_on(release, start, request_arguments):
    """Releases before have a dtype of that name and no layer for it: they are refused by name."""
    request = {**request_arguments, "precision": "fp8"}
    with start(layer_dtype="FP8") as worker:
        if major(release) >= 10:
            assert worker.request("build", request, limit_s=60).value["precision_shares"] == {"fp8": 1.0}
            return
        with pytest.raises(EngineBuildError, match="does not have") as caught:
            worker.request("build", request, limit_s=60)
    assert (caught.value.code, caught.value.facts["setting"]) == ("E546", "[onnx] precision")
    assert caught.value.facts["expected"] == "TensorRT 10.0 or newer"


@pytest.mark.parametrize(
    ("asked", "layers", "is_refused"),
    [
        ("int8", {"int8": 0.4, "fp32": 0.6}, False),
        ("int8", {"int8": 0.4, "fp16": 0.6}, False),
        ("fp8", {"fp8": 0.4, "bf16": 0.6}, False),
        ("int8", {"fp32": 1.0}, True),
        ("fp8", {"fp16": 1.0}, True),
        ("fp8", {"fp8": 0.5, "int8": 0.5}, True),
        ("fp16", {"fp16": 0.5, "int8": 0.5}, True),
    ],
)
def test_an_engine_in_8_bits_has_layers_in_them(asked, layers, is_refused):
    """Besides them it may have layers in half precision, by a file from elsewhere, and in no other 8 bits; without them it is refused."""
    refusal = pytest.raises(EngineBuildError, match="does not have the precision") if is_refused else contextlib.nullcontext()
    with refusal:
        check_precision(layers, asked)


def test_an_engine_without_the_precision_that_was_asked_for_is_refused(release, start, request_arguments):
    """Where float16 was asked for and every layer computes in float32, nothing is written."""
    with start() as worker, pytest.raises(EngineBuildError, match=r"fp32 100\.0%") as caught:
        worker.request("build", {**request_arguments, "precision": "fp16"}, limit_s=60)
    assert (caught.value.code, caught.value.facts["expected"]) == ("E507", "fp16")


@pytest.mark.parametrize("on_request", [True, False], ids=["on request", "libraries missing"])
def test_tactics_of_missing_libraries_are_switched_off(release, start, request_arguments, on_request):
    """Before TensorRT 10, tactics of cuBLAS and cuDNN are left out on request, or where the libraries are not there; the answer says so."""
    with start() as worker:
        facts = worker.request("build", {**request_arguments, "disable_tactic_libraries": on_request}, limit_s=60).value
        sources = worker.request("record", limit_s=60).value.get("tactic_sources")
    if major(release) >= 10:
        assert (facts["disabled_tactic_sources"], sources) == ([], None)
    elif on_request:
        assert facts["disabled_tactic_sources"] == ["CUBLAS", "CUBLAS_LT", "CUDNN"]
        assert sources == 0b11000
    else:
        off = facts["disabled_tactic_sources"]
        assert (sources is None) == (not off)  # which of the libraries this machine has is not for the test to say


@pytest.mark.parametrize(
    ("scenario", "code", "kind", "text"),
    [
        pytest.param({"no_device": True}, "E858", NoGpu, "CUDA initialization failure", id="no device"),
        pytest.param({"parser_refuses": True}, "E501", EngineBuildError, "no importer registered", id="parser"),
        pytest.param({"builder_returns_none": True}, "E502", EngineBuildError, "Could not find any implementation for node head", id="builder"),
        pytest.param({"no_config": True}, "E502", EngineBuildError, "create_builder_config", id="config"),
        pytest.param({"profile_refused": True}, "E502", EngineBuildError, "refused an optimization profile", id="profile"),
        pytest.param({"shape_tensor": True}, "E524", ModelNotSupported, "decides shapes", id="shape tensor"),
        pytest.param({"timing_refused": True}, "E502", EngineBuildError, "set_timing_cache", id="timing cache"),
        pytest.param({"layer_dtype": "FP16"}, "E507", EngineBuildError, "fp16 100.0%", id="precision"),
    ],
)
def test_each_failure_of_a_build_is_an_error(release, start, request_arguments, scenario, code, kind, text):
    """False, None, -1 and a null pointer are each an error with its code, with TensorRT's own words in it."""
    with start(**scenario) as worker, pytest.raises(kind) as caught:
        worker.request("build", {**request_arguments, "timing_cache": True}, (b"",), limit_s=60)
    assert caught.value.code == code
    assert text in str(caught.value)


def test_a_refused_profile_is_named(release, start, request_arguments):
    """A profile that leaves out a dynamic input is an error before the builder starts."""
    with start() as worker, pytest.raises(EngineBuildError, match="does not name every dynamic input") as caught:
        worker.request("build", {**request_arguments, "profiles": [{}]}, limit_s=60)
    assert caught.value.facts["missing"] == "image"


def test_parser_errors_name_their_nodes(release, start, request_arguments):
    """Every parser error says which node; from TensorRT 10 on by name and operator."""
    with start(parser_refuses=True) as worker, pytest.raises(EngineBuildError) as caught:
        worker.request("build", request_arguments, limit_s=60)
    lines = caught.value.facts["nodes"].split("\n")
    assert lines[0] == (
        "node 0 '/head/op0' (NonMaxSuppression): no importer registered for op" if major(release) >= 10 else "node 0: no importer registered for op"
    )
    assert lines[-1] == "and 2 more"
    assert bool(caught.value.help) == (major(release) < 10)


def test_a_build_is_cancelled(release, start, request_arguments):
    """From TensorRT 10 on, a False from the callback reaches the builder through its progress monitor."""
    if major(release) < 10:
        pytest.skip("TensorRT before 10 has no progress monitor: the worker is ended, which tests/trt_worker shows")
    with start(slow=True) as worker, pytest.raises(EngineBuildError, match="cancelled") as caught:
        worker.request("build", request_arguments, limit_s=60, progress=lambda phase, done, total: done < 5 or phase != "Timing graph nodes")
    assert caught.value.code == "E503"


@pytest.fixture
def refit(request_arguments, tmp_path):
    """Return a function that builds a refittable plan and asks for other weights."""

    def ask(worker, *, refittable=True):
        plan = bytes(worker.request("build", {**request_arguments, "refittable": refittable}, limit_s=60).buffers[0])
        path, onnx = tmp_path / "old.plan", tmp_path / "new.onnx"
        path.write_bytes(plan)
        onnx.write_bytes(b"other weights")
        return plan, worker.request(
            "refit", {"path": str(path), "sha256": hashlib.sha256(plan).hexdigest(), "onnx_path": str(onnx), "precision": "fp32"}, limit_s=60
        )

    return ask


def test_refit(release, start, refit):
    """From TensorRT 10 on an engine takes the weights of another ONNX file; before, that is refused by name."""
    with start() as worker:
        if release.number < (10, 0):
            with pytest.raises(EngineBuildError, match="takes no new weights") as caught:
                refit(worker)
            assert caught.value.code == "E542"
            assert release.version in caught.value.facts["found"]
            return
        plan, reply = refit(worker)
    before, after = json.loads(plan), json.loads(bytes(reply.buffers[0]))
    assert before["weights"] != after["weights"]
    assert {**before, "weights": 0} == {**after, "weights": 0}
    assert reply.value["sha256"] == hashlib.sha256(reply.buffers[0]).hexdigest()
    assert (reply.value["precision_shares"], reply.value["refittable"]) == ({"fp32": 1.0}, True)


@pytest.mark.parametrize(
    ("scenario", "refittable", "code", "text"),
    [
        ({}, False, "E542", "keeps its weights"),
        ({"weights_refused": True}, True, "E544", "NonMaxSuppression"),
        ({"weights_missing": True}, True, "E544", "w0, w1, w2, w3, w4 and 2 more"),
        ({"refit_fails": True}, True, "E544", "refit_cuda_engine"),
        ({"not_serialized": True}, True, "E522", "serialize"),
    ],
    ids=["not refittable", "parser", "missing", "refit", "serialize"],
)
def test_each_failure_of_a_refit_is_an_error(release, start, refit, scenario, refittable, code, text):
    """An engine that takes no weights, weights that do not fit or are missing: each is an error with TensorRT's own words."""
    if release.number < (10, 0):
        pytest.skip("TensorRT before 10 does not refit from ONNX, which test_refit shows")
    with start(**scenario) as worker, pytest.raises(EngineBuildError) as caught:
        refit(worker, refittable=refittable)
    assert caught.value.code == code
    assert text in str(caught.value)


def test_infer(release, start, loaded):
    """A loaded engine computes on the stream that is not the default one, for shapes of either profile, in any order."""
    with start() as worker:
        loaded(worker)
        for batch in (4, 128, 1, 32):
            arrays = feed(batch)
            np.testing.assert_allclose(infer(worker, arrays)["logits"], expected(arrays), rtol=1e-5, atol=1e-4)
        record = worker.request("record", limit_s=60).value
    assert 0 not in record["streams"]
    assert record["calls"] == ["profile 1", "profile 0"]
    assert record["LiveBlocks"] == 0


def test_layers(release, start, loaded):
    """The layers of a loaded engine come with their precision, in the way in which the inspector of this release writes them."""
    with start() as worker:
        loaded(worker)
        assert worker.request("layers", limit_s=60).value == {"layers": {"conv": "fp32", "head": "fp32"}}


def test_what_the_engine_does_not_write_is_nan(release, start, loaded):
    """Outputs are NaN before a call, so that a row that the engine leaves out is seen."""
    with start(row_unwritten=True) as worker:
        loaded(worker)
        arrays = feed(4)
        logits = infer(worker, arrays)["logits"]
    np.testing.assert_allclose(logits[:3], expected(arrays)[:3], rtol=1e-5, atol=1e-4)
    assert np.isnan(logits[3]).all()


def test_timing(release, start, loaded):
    """A block is timed call by call with one synchronisation after it, on buffers that stay; nothing is left on the device after."""
    with start() as worker:
        loaded(worker)
        prepared = []
        for batch in (1, 32):
            specs, buffers = pack_arrays(feed(batch))
            prepared.append(worker.request("prepare", {"arrays": specs}, buffers, limit_s=60).value["prepared"])
        before = worker.request("record", limit_s=60).value
        for number in (*prepared, *prepared):
            reply = worker.request("time", {"prepared": number, "iterations": 25}, limit_s=60)
            times = unpack_arrays(reply.value["arrays"], reply.buffers)["milliseconds"]
            assert times.shape == (25,)
            assert (times > 0).all()
            assert times.sum() <= reply.value["wall_ms"]
        after = worker.request("record", limit_s=60).value
        worker.request("release", {"prepared": prepared[0]}, limit_s=60)
        worker.request("unload", limit_s=60)
        end = worker.request("record", limit_s=60).value
    assert len(after["streams"]) - len(before["streams"]) == 100
    assert after["Synchronisations"] - before["Synchronisations"] == 2 * 4  # before and after each block
    assert (before["LiveBlocks"], after["LiveBlocks"], end["LiveBlocks"], end["LiveEvents"], end["LiveStreams"]) == (4, 4, 0, 0, 0)


@pytest.mark.parametrize(
    ("scenario", "code", "kind"),
    [
        pytest.param({"shape_refused": True}, "E522", EngineBuildError, id="set_input_shape"),
        pytest.param({"shapes_unknown": True}, "E522", EngineBuildError, id="infer_shapes"),
        pytest.param({"enqueue_fails": True}, "E522", EngineBuildError, id="execute"),
        pytest.param({"infer_raises": True}, "E522", EngineBuildError, id="infer_shapes raises"),
    ],
)
def test_each_failure_of_a_call_is_an_error(release, start, loaded, scenario, code, kind):
    """Every bool that TensorRT returns is looked at, and nothing stays on the device after a failure."""
    with start(**scenario) as worker:
        loaded(worker)
        with pytest.raises(kind) as caught:
            infer(worker, feed(4))
        assert worker.request("record", limit_s=60).value["LiveBlocks"] == 0
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("scenario", "code"),
    [
        ({"plan_refused": True}, "E521"),
        ({"no_context": True}, "E522"),
        ({"shape_inference_io": True}, "E524"),
        ({"engine": {"output_dtype": "FP8"}}, "E524"),
    ],
    ids=["plan", "context", "shape input", "dtype"],
)
def test_each_failure_of_loading_is_an_error(release, start, request_arguments, tmp_path, scenario, code):
    """A plan that this TensorRT does not take, or takes and cannot run, is an error with its code."""
    if "engine" in scenario and release.number < (8, 6):
        pytest.skip("every dtype of TensorRT 8.5 is one that NumPy has")
    path = tmp_path / "digits.plan"
    path.write_text(
        '{"profiles": [{"image": [[1, 1, 8, 8], [1, 1, 8, 8], [1, 1, 8, 8]]}], "output_dtype": "FP8"}'
        if "engine" in scenario
        else '{"profiles": [{}]}'
    )
    with start(**scenario) as worker, pytest.raises((ArtifactError, EngineBuildError, ModelNotSupported)) as caught:
        worker.request("load", {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}, limit_s=60)
    assert caught.value.code == code


def test_a_plan_with_other_bytes_never_reaches_tensorrt(release, start, tmp_path):
    """The digest is compared over the bytes that would go to TensorRT."""
    path = tmp_path / "digits.plan"
    path.write_bytes(b'{"profiles": [{}]}')
    with start(plan_refused=True) as worker, pytest.raises(ArtifactError, match="differs from its record"):
        worker.request("load", {"path": str(path), "sha256": "0" * 64}, limit_s=60)


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": np.zeros((4, 1, 8, 8), np.float32)},
        {"image": np.zeros((4, 1, 8, 8), np.float64)},
        {"image": np.zeros((4, 1, 8, 9), np.float32)},
        {"image": np.zeros((4, 8, 8), np.float32)},
        {"image": np.zeros((48, 1, 8, 8), np.float32)},
    ],
    ids=["name", "dtype", "shape", "rank", "between the profiles"],
)
def test_inputs_that_do_not_fit_are_refused(release, start, loaded, arrays):
    """A name, dtype or shape outside every profile is an error that says what would fit."""
    with start() as worker:
        loaded(worker)
        with pytest.raises(SampleError) as caught:
            infer(worker, arrays)
    assert caught.value.code == "E525"
    assert caught.value.facts["expected"]


def test_device_memory_that_runs_out_is_an_error(release, start, loaded, monkeypatch):
    """A CUDA call that fails names itself and the error, and what was taken is given back."""
    monkeypatch.setenv("FAKE_CUDA_MEMORY", "36000")
    with start() as worker:
        loaded(worker)
        with pytest.raises(EngineBuildError, match="CUDA call") as caught:
            infer(worker, feed(128))
        assert worker.request("record", limit_s=60).value["LiveBlocks"] == 0
        infer(worker, feed(4))
    assert caught.value.facts == {"call": "cuMemAlloc_v2", "found": "error 2: CUDA_ERROR_OUT_OF_MEMORY: out of memory"}
