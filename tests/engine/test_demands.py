"""What is asked of an engine beyond its network: refused before a worker is started, or in key and sidecar."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from releases import RELEASES

from exporter.config import load_config
from exporter.engine import build_engine, layers_of, make_engine, parse_profiles, plan_key, probe, refit_engine
from exporter.errors import ArtifactError, ConfigError, EngineBuildError
from exporter.packaging.triton_config import Serving, describe
from exporter.runners.tensorrt import TensorrtRunner

KEY = "0" * 64
SHARED_OBJECT = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00"
"""As much of a library as is looked at; the stand-in runs nothing of it."""
ONES = {"image": np.ones((2, 1, 8, 8), np.float32)}


@pytest.fixture
def make_plan(config, make_model, tmp_path):
    """Return a function that builds a plan with these settings."""

    def make(**settings):
        model = make_model()
        return build_engine(model, tmp_path / "digits.plan", config.replace(**settings), parse_profiles((), model.inputs, batch=8), key=KEY)

    return make


@pytest.mark.parametrize("other", ["refittable", "stripped"])
def test_a_version_compatible_engine_takes_no_new_weights(config, make_model, tmp_path, other):
    """The two settings exclude each other, which is said before a worker is started."""
    model = make_model()
    asked = config.replace(version_compatible=True, python="none", **{other: True})
    with pytest.raises(ConfigError, match="exclude each other") as caught:
        build_engine(model, tmp_path / "a.plan", asked, parse_profiles((), model.inputs, batch=8), key=KEY)
    assert caught.value.code == "E555"
    assert other in caught.value.help


def test_the_command_refuses_before_it_looks_for_a_gpu(digits, run_cli):
    """A mistake in the settings is told on a machine without a GPU too."""
    done = run_cli("build-trt", "--version-compatible", "--refittable", cwd=digits)
    assert (done.returncode, "E555" in done.stderr) == (2, True)


@pytest.mark.parametrize("setting", ["version_compatible", "weight_streaming"])
def test_a_demand_decides_the_plan_and_stands_in_its_sidecar(make_plan, config, make_model, run_cli, setting):
    """Another key, and a fact of the sidecar that ``inspect`` shows."""
    model, support = make_model(), probe(config)
    profiles = parse_profiles((), model.inputs, batch=8)
    asked = config.replace(**{setting: True})
    assert plan_key(model.digest, asked, profiles, support) != plan_key(model.digest, config, profiles, support)
    plan = make_plan(**{setting: True})
    content = json.loads(plan.sidecar_path.read_text())["content"]
    assert content[setting] is True
    assert content["provenance"]["settings"][setting] is True
    shown = run_cli("inspect", plan.path).stdout
    assert {"version_compatible": "version-compatible", "weight_streaming": "weights streamed"}[setting] in shown


def test_code_for_the_host_runs_out_of_our_plans_alone(make_plan, config, monkeypatch, tmp_path):
    """A version-compatible plan is run, and its layers are read, as long as its record is ours; without, no worker is started."""
    plan = make_plan(version_compatible=True)
    with TensorrtRunner(plan, config) as runner:
        assert runner.infer(ONES)["logits"].shape == (2, 10)
    assert layers_of(plan, config) == {"conv": "fp32", "head": "fp32"}
    monkeypatch.setenv("EXPORTER_STATE_DIR", str(tmp_path / "elsewhere"))
    nowhere = config.replace(python="none")
    with pytest.raises(ArtifactError) as caught, TensorrtRunner(plan, nowhere):
        pass
    assert caught.value.code == "E722"
    with pytest.raises(ArtifactError):
        layers_of(plan, nowhere)


def test_the_budget_of_the_settings_reaches_the_engine(make_plan, config, scenario):
    """The budget is one of loading: the same plan takes each, and one that TensorRT does not take is named in bytes."""
    plan = make_plan(weight_streaming=True)
    for budget_mib in (None, 0, 1):
        with TensorrtRunner(plan, config.replace(weight_streaming_budget_mib=budget_mib)) as runner:
            assert runner.infer(ONES)["logits"].shape == (2, 10)
    scenario(budget_refused=True)
    with pytest.raises(EngineBuildError, match="E559") as caught, TensorrtRunner(plan, config.replace(weight_streaming_budget_mib=0)):
        pass
    assert caught.value.facts["asked for"] == "0 bytes"


@pytest.fixture
def library(tmp_path):
    """A file that could be a library."""
    path = tmp_path / "libfoo.so"
    path.write_bytes(SHARED_OBJECT)
    return path


@pytest.mark.parametrize("content", [None, b"", b"#!/bin/sh\n", SHARED_OBJECT.replace(b"\x03", b"\x02")], ids=["missing", "empty", "text", "program"])
def test_what_is_no_library_is_refused(digits, run_cli, content):
    """A missing file and one of another kind are told before anything is started, on a machine without a GPU too."""
    if content is not None:
        (digits / "foo.so").write_bytes(content)
    done = run_cli("build-trt", "--plugin", "foo.so", cwd=digits)
    assert (done.returncode, "E556" in done.stderr, "foo.so" in done.stderr) == (4, True, True), done.stderr


def test_libraries_of_a_configuration_lie_beside_it(tmp_path):
    """A relative path starts from the folder of the configuration file."""
    path = tmp_path / "exporter.toml"
    path.write_text('[tensorrt]\nplugins = ["libfoo.so", "/opt/libbar.so"]\n')
    assert [str(found) for found in load_config(path, environment={}).tensorrt.plugins] == [str(tmp_path / "libfoo.so"), "/opt/libbar.so"]


def test_a_plan_is_loaded_with_the_libraries_that_it_was_built_with(make_plan, make_model, config, library, run_cli, tmp_path):
    """The digest decides, not the place: a library that was moved is found by it, another one in its place is refused, as is none."""
    asked = config.replace(plugins=[library])
    plan = make_plan(plugins=[library])
    assert plan.plugins == ("libfoo.so",)
    assert "libfoo.so" in run_cli("inspect", plan.path).stdout
    moved = library.rename(tmp_path / "libmoved.so")
    with TensorrtRunner(plan, config.replace(plugins=[moved])) as runner:
        assert runner.infer(ONES)["logits"].shape == (2, 10)
    library.write_bytes(SHARED_OBJECT + b"other")
    model, nowhere = make_model(), asked.replace(python="none")
    for settings, found in ((nowhere, "libfoo.so"), (nowhere.replace(plugins=[]), "none named")):
        with pytest.raises(ArtifactError) as caught, TensorrtRunner(plan, settings):
            pass
        assert (caught.value.code, found in caught.value.facts["found"]) == ("E557", True)
        with pytest.raises(ArtifactError, match="E557"):
            layers_of(plan, settings)
    assert plan_key(model.digest, asked, (), probe(config)) != plan_key(model.digest, config.replace(plugins=[moved]), (), probe(config))


def network(name: str = "g") -> bytes:
    """Return an ONNX file."""
    import onnx

    value = onnx.helper.make_tensor_value_info("image", 1, ["batch"])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["image"], ["logits"])], name, [value], [])
    return onnx.helper.make_model(graph).SerializeToString()


def test_a_refit_needs_the_libraries_too(make_model, config, library, tmp_path):
    """New weights are put in with the libraries of the plan, and the new plan names them."""
    model = make_model(network())
    asked = config.replace(refittable=True, plugins=[library])
    plan = build_engine(model, tmp_path / "a.plan", asked, parse_profiles((), model.inputs, batch=8), key=KEY)
    assert refit_engine(plan, model, tmp_path / "b.plan", asked).plugins == ("libfoo.so",)
    with pytest.raises(ArtifactError, match="E557"):
        refit_engine(plan, model, tmp_path / "c.plan", asked.replace(plugins=[], python="none"))


def test_triton_is_told_what_a_plan_needs(make_plan, library, tmp_path):
    """A plan that needs a library, or another release's runtime, needs options of the server, which are named."""
    plan = make_plan(plugins=[library], version_compatible=True)
    (remark,) = [text for text in describe(plan, "digits", Serving()).remarks if "start the server" in text]
    assert 'plugins="libfoo.so"' in remark
    assert "version-compatible=true" in remark
    plain = dataclasses.replace(plan, plugins=(), version_compatible=False)
    assert not [text for text in describe(plain, "digits", Serving()).remarks if "start the server" in text]


def test_a_reproducible_build_takes_the_tactics_of_the_first(config, make_model, tmp_path, scenario, run_cli):
    """The first build records its tactics, a second one takes them; one that takes others fails, and the plan of before stays."""
    model = make_model(network())
    asked = config.replace(reproducible=True, cache_mib=0)
    profiles, support = parse_profiles((), model.inputs, batch=8), probe(config)
    path = tmp_path / "digits.plan"

    def make():
        make_engine(model, path, asked, profiles, support, cache=tmp_path / "cache")
        content = json.loads(path.with_name("digits.plan.json").read_text())["content"]
        return content["timing_cache"], content["tactics"]

    first = make()
    assert first[0] == "new"
    assert (first[1]["count"], len(first[1]["entries"])) == (2, 2)
    path.unlink()
    assert make() == ("replayed", first[1])
    assert "tactics  2, replayed" in run_cli("inspect", path).stdout
    path.unlink()
    scenario(other_tactic=True)
    with pytest.raises(EngineBuildError, match="E561"):
        make()
    assert not path.exists()
    scenario()
    assert make() == ("replayed", first[1])  # what failed left the record as it was
    other = make_engine(make_model(network("other")), tmp_path / "b.plan", asked, profiles, support, cache=tmp_path / "cache")[0]
    assert json.loads(other.sidecar_path.read_text())["content"]["timing_cache"] == "new"  # every plan has its own


@pytest.mark.parametrize("release", [RELEASES[3]], ids=str)
def test_a_release_without_editable_caches_is_refused(make_plan):
    """The setting is refused by name, and never left out."""
    with pytest.raises(EngineBuildError, match="reproducible") as caught:
        make_plan(reproducible=True)
    assert caught.value.code == "E546"


def test_every_error_of_a_build_has_tensorrts_last_words(make_plan, scenario):
    """An error that is found in the finished engine has them too."""
    scenario(layer_dtype="FP16")
    with pytest.raises(EngineBuildError) as caught:
        make_plan()
    assert caught.value.code == "E507"
    assert "a warning of the builder" in caught.value.facts["TensorRT"]
