"""What is not done twice: engines by content, and the timing cache of a device."""

from __future__ import annotations

import fcntl
import json
import os
import time

import pytest
from releases import RELEASES

from exporter.config import Config, TensorrtConfig
from exporter.engine import build_engine, cache_folder, make_engine, parse_profiles, require
from exporter.engine.timing_cache import held_timing_cache, timing_key
from exporter.errors import EngineBuildError
from exporter.records import write_record

KEY = "0" * 64
DEVICE = {"name": "a GPU", "compute_capability": "9.0", "num_multiprocessors": 132, "clock_khz": 1980000, "driver_version": "1"}
each_release = pytest.mark.parametrize("release", [RELEASES[1], RELEASES[6], RELEASES[-1]], ids=str)


@pytest.fixture
def make_real_model(make_model):
    """Return a function that makes an ONNX file that can be read, since the cache looks for weights beside it."""
    import onnx

    def make(name="g"):
        graph = onnx.helper.make_graph([], name, [], [])
        return make_model(onnx.helper.make_model(graph).SerializeToString())

    return make


@pytest.fixture
def make(config, tmp_path):
    """Return a function that makes a plan through the caches."""
    support = require(config)

    def call(model, name="digits.plan", **settings):
        profiles = parse_profiles((), model.inputs, batch=32)
        return make_engine(model, tmp_path / "out" / name, config.replace(**settings), profiles, support, cache=tmp_path / "cache")

    return call


def sidecar(plan) -> dict:
    """Return what the sidecar says."""
    return json.loads(plan.sidecar_path.read_text())["content"]


@each_release
def test_a_plan_is_built_once(make, make_real_model, monkeypatch):
    """The same content is up to date where it lies, and a copy elsewhere; neither asks a builder, and either takes under a second of work."""
    model = make_real_model()
    built, how = make(model)
    assert how == "made"
    monkeypatch.setattr("exporter.engine.making.build_engine", None)
    started = time.process_time()
    assert make(model) == (built, "up to date")
    other, how = make(model, "other.plan")
    assert time.process_time() - started < 1
    assert how == "from the cache"
    assert (other.digest, other.provenance, other.path.read_bytes()) == (built.digest, built.provenance, built.path.read_bytes())
    built.path.unlink()
    assert make(model)[1] == "from the cache"


def test_another_content_is_built(make, make_real_model):
    """Other ONNX bytes, another setting: each is a build of its own, and going back costs none."""
    model = make_real_model()
    assert [make(model)[1], make(model, tf32=True)[1], make(make_real_model("h"))[1], make(make_real_model())[1]] == [
        "made",
        "made",
        "made",
        "from the cache",
    ]


def test_weights_beside_the_model_count(make, make_model, tmp_path):
    """A model whose weights lie in another file is built anew when they change, though its own bytes do not."""
    import numpy as np
    import onnx

    weight = onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    onnx.external_data_helper.set_external_data(weight, "weights.data", offset=0, length=16)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    content = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [weight])).SerializeToString()
    states = []
    for number in (1, 2, 1):
        model = make_model(content)
        (tmp_path / "weights.data").write_bytes(bytes([number] * 16))
        states.append(make(model)[1])
    assert states == ["made", "made", "from the cache"]


@pytest.mark.parametrize("what", ["plan", "record"])
def test_an_altered_plan_of_the_cache_is_not_used(make, make_real_model, tmp_path, what):
    """A plan is executable: one in the cache that is not as we wrote it is built anew."""
    model = make_real_model()
    built, _ = make(model)
    built.path.unlink()
    (kept,) = (tmp_path / "cache" / "engines").glob("*.plan")
    altered = kept if what == "plan" else kept.with_name(f"{kept.name}.json")
    altered.write_bytes(altered.read_bytes() + b" " if what == "plan" else altered.read_bytes().replace(b'"fp32"', b'"fp16"'))
    assert make(model)[1] == "made"


def test_the_cache_gives_up_what_was_not_used_for_longest(make, make_real_model, tmp_path):
    """Beyond its room the oldest go, with their records; the newest stays though it may be too large alone; without room none is kept."""
    engines = tmp_path / "cache" / "engines"
    plan, _ = make(make_real_model("first"))
    (kept,) = engines.glob("*.plan")
    os.truncate(kept, 2 << 20)
    os.utime(kept, (1, 1))
    make(make_real_model("second"), cache_mib=1)
    assert kept not in engines.iterdir()
    assert len(list(engines.iterdir())) == 2
    make(make_real_model("third"), cache_mib=0)
    assert len(list(engines.iterdir())) == 2
    assert plan.path.exists()


@each_release
def test_what_was_measured_is_taken_up(config, make_model, tmp_path):
    """The second build on a device begins with the timings of the first; the sidecar says so, and the file is whole and keyed."""
    states = []
    for content in (b"one", b"two"):
        model = make_model(content)
        plan = build_engine(model, tmp_path / "a.plan", config, parse_profiles((), model.inputs, batch=1), key=KEY, cache=tmp_path / "cache")
        states.append(sidecar(plan)["timing_cache"])
    assert states == ["new", "taken up"]
    names = sorted(path.suffix for path in (tmp_path / "cache" / "timing").iterdir())
    assert names == [".cache", ".json", ".lock"]
    (cache,) = (tmp_path / "cache" / "timing").glob("*.cache")
    assert json.loads(cache.read_text())["tactics"] == 2


def test_a_timing_cache_that_is_not_ours_is_begun_anew(config, make_model, tmp_path):
    """A file that was altered is not given to TensorRT; one that TensorRT refuses is left aside."""
    model = make_model()

    def state():
        plan = build_engine(model, tmp_path / "a.plan", config, parse_profiles((), model.inputs, batch=1), key=KEY, cache=tmp_path / "cache")
        return sidecar(plan)["timing_cache"]

    assert state() == "new"
    (cache,) = (tmp_path / "cache" / "timing").glob("*.cache")
    cache.write_bytes(b"{}")
    assert state() == "new"
    cache.write_text('{"version": "9.9", "tactics": 0}')
    write_record(cache, key=json.loads(cache.with_name(f"{cache.name}.json").read_text())["key"], content={})
    assert state() == "refused"
    assert state() == "taken up"


def test_a_timing_cache_belongs_to_device_version_and_flags():
    """Whatever TensorRT ties a timing cache to changes its key; the effort of the builder does not."""
    config = TensorrtConfig()
    keys = {
        timing_key("11.4.0.106", DEVICE, config, precision="fp32"),
        timing_key("11.3.0.99", DEVICE, config, precision="fp32"),
        timing_key("11.4.0.106", DEVICE, config.replace(tf32=True), precision="fp32"),
        timing_key("11.4.0.106", DEVICE, config, precision="fp16"),
    }
    keys |= {timing_key("11.4.0.106", {**DEVICE, name: 1}, config, precision="fp32") for name in DEVICE}
    assert len(keys) == 4 + len(DEVICE)
    assert timing_key("11.4.0.106", DEVICE, config.replace(optimization_level=5), precision="fp32") in keys


def test_builds_wait_for_each_other(tmp_path):
    """While another build holds the cache the wait is told of, can be ended, and ends by itself at the limit."""
    folder = tmp_path / "cache"
    with held_timing_cache(folder, KEY, limit_s=1) as held:
        held.keep(b"content", {})
        with pytest.raises(EngineBuildError, match="cancelled") as caught, held_timing_cache(folder, KEY, limit_s=60, progress=lambda *_: False):
            pass
        assert caught.value.code == "E503"
        with pytest.raises(EngineBuildError, match="for too long") as caught, held_timing_cache(folder, KEY, limit_s=0.2):
            pass
        assert caught.value.code == "E541"
        with held_timing_cache(folder, "1" * 64, limit_s=1) as another:
            assert another.content == b""
    with held_timing_cache(folder, KEY, limit_s=1) as held:
        assert held.content == b"content"


def test_the_end_of_a_process_gives_the_cache_back(tmp_path):
    """A lock is the kernel's: a build that was killed holds nothing."""
    path = tmp_path / "timing" / f"{KEY[:32]}.lock"
    path.parent.mkdir()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.close(descriptor)
    with held_timing_cache(tmp_path, KEY, limit_s=0.2) as held:
        assert held.content == b""


def test_where_caches_are(tmp_path, monkeypatch):
    """The configured folder counts from the configuration; without one it is the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_folder(Config(base=tmp_path, tensorrt={"cache": "cache"})) == tmp_path / "cache"
    assert cache_folder(Config()) == tmp_path / "user" / "exporter" / "tensorrt"
