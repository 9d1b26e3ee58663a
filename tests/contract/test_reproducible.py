"""A build that takes the tactics of an earlier one, on the real bindings of each release: keys and tactics are objects of TensorRT's own classes."""

from __future__ import annotations

import json

import pytest

from exporter.errors import EngineBuildError

PROFILES = [{"image": [[1, 1, 8, 8], [32, 1, 8, 8], [32, 1, 8, 8]]}]
TACTICS = {"0x1814870c44ff0f8574df6e3dda04cbd7": "0x2c80ce2f5c4a6f01", "0xe5c222cd6b9e29cbe66c8bec07cb6a07": "0x2c80ce2f5c4a6f02"}
NEW_KEY = "0x00000000000000000000000000000007"


@pytest.fixture
def build(tmp_path):
    """Return a function that builds reproducibly, with this timing cache and these tactics."""
    onnx = tmp_path / "a.onnx"
    onnx.write_bytes(b"onnx")
    given = {"onnx_path": str(onnx), "profiles": PROFILES, "tf32": False, "workspace_bytes": 1 << 20, "optimization_level": 2, "timing_iterations": 8}

    def ask(worker, content=b"", tactics=None):
        return worker.request("build", {**given, "reproducible": True, "tactics": tactics or {}}, (content,), limit_s=60)

    return ask


@pytest.fixture
def _editable(release):
    if release.number < (10, 8):
        pytest.skip("TensorRT before 10.8 has no timing cache that can be edited, which test_tactics_are_recorded_and_replayed shows")


def test_tactics_are_recorded_and_replayed(release, start, build):
    """The first build begins empty and tells its tactics by key; the second takes them, and may time nothing."""
    with start() as worker:
        if release.number < (10, 8):
            with pytest.raises(EngineBuildError) as caught:
                build(worker)
            assert (caught.value.code, caught.value.facts["expected"]) == ("E546", "TensorRT 10.8 or newer")
            return
        first = build(worker, b"not looked at")
        flags = worker.request("record", limit_s=60).value["flags"]
        second = build(worker, first.buffers[1], first.value["tactics"])
        replaying = worker.request("record", limit_s=60).value["flags"]
    assert (first.value["timing_cache"], second.value["timing_cache"]) == ("new", "replayed")
    assert first.value["tactics"] == second.value["tactics"] == TACTICS
    on = {"BuilderFlag.EDITABLE_TIMING_CACHE", "BuilderFlag.DISABLE_COMPILATION_CACHE"}
    assert {name for name, is_set in flags.items() if is_set} == on
    assert {name for name, is_set in replaying.items() if is_set} == on | {"BuilderFlag.ERROR_ON_TIMING_CACHE_MISS"}


@pytest.mark.usefixtures("_editable")
def test_recorded_tactics_win_over_the_cache(release, start, build):
    """What was recorded is put into the cache before it is attached, whatever the cache says."""
    with start() as worker:
        cache = json.loads(bytes(build(worker).buffers[1]))
        cache["by_key"][next(iter(TACTICS))] = [1, 0.5]
        again = build(worker, json.dumps(cache).encode(), TACTICS)
    assert again.value["tactics"] == TACTICS


@pytest.mark.usefixtures("_editable")
@pytest.mark.parametrize(
    ("scenario", "facts"),
    [
        ({"other_tactic": True}, {"other tactics": f"{next(iter(TACTICS))}: 0xffffffffffffffff for 0x2c80ce2f5c4a6f01"}),
        ({"timed_anew": NEW_KEY}, {"timed anew": NEW_KEY}),
    ],
    ids=["another tactic", "a miss that is not told"],
)
def test_other_tactics_are_named_by_their_keys(release, start, build, tmp_path, scenario, facts):
    """A build that took another tactic, or timed something that was not recorded, is an error, though TensorRT says nothing."""
    with start() as worker:
        content = bytes(build(worker).buffers[1])
    with start(**scenario) as worker, pytest.raises(EngineBuildError, match="other tactics") as caught:
        build(worker, content, TACTICS)
    assert caught.value.code == "E561"
    assert facts.items() <= caught.value.facts.items()


@pytest.mark.usefixtures("_editable")
@pytest.mark.parametrize(
    ("scenario", "tactics", "text"),
    [
        ({"tactic_refused": True}, TACTICS, next(iter(TACTICS))),
        ({}, {NEW_KEY: "0x1"}, NEW_KEY),
        ({"timing_refused": True}, TACTICS, "set_timing_cache"),
    ],
    ids=["tactic", "key", "cache"],
)
def test_tactics_that_are_not_taken_are_an_error(release, start, build, scenario, tactics, text):
    """Nothing is timed anew in silence where TensorRT refuses a recorded tactic, its key, or the cache as a whole."""
    with start() as worker:
        content = bytes(build(worker).buffers[1])
    with start(**scenario) as worker, pytest.raises(EngineBuildError) as caught:
        build(worker, content, tactics)
    assert caught.value.code == "E560"
    assert text in caught.value.facts["found"]


@pytest.mark.usefixtures("_editable")
def test_a_miss_is_an_error_in_tensorrts_words(release, start, build):
    """A key that the builder asks for and the cache does not have ends the build."""
    with start() as worker:
        cache = json.loads(bytes(build(worker).buffers[1]))
        key, other = TACTICS
        del cache["by_key"][other]
        with pytest.raises(EngineBuildError, match="timing cache miss") as caught:
            build(worker, json.dumps(cache).encode(), {key: TACTICS[key]})
    assert caught.value.code == "E502"
