"""New weights for an engine: what is refused before TensorRT is asked, and what the new plan says of itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
from releases import RELEASES

from exporter.config import Config
from exporter.engine import build_engine, parse_profiles, refit_engine
from exporter.engine.structure import structure_digest
from exporter.errors import ArtifactError, EngineBuildError
from exporter.gates import candidates_of
from exporter.packaging import Serving, write_repository
from exporter.runners.tensorrt import TensorrtRunner


@pytest.fixture
def make_network(make_model):
    """Return a function that makes an ONNX model with these weights, axes and operator."""
    import onnx

    def make(weight=1.0, axis=1, operator="Mul", epsilon=1e-5):
        initializers = [
            onnx.numpy_helper.from_array(np.full(4, weight, np.float32), "w"),
            onnx.numpy_helper.from_array(np.array([axis], np.int64), "axes"),
        ]
        nodes = [
            onnx.helper.make_node(operator, ["image", "w"], ["scaled"], name="scale"),
            onnx.helper.make_node("ReduceSum", ["scaled", "axes"], ["logits"], name="sum"),
            onnx.helper.make_node("LayerNormalization", ["image", "w"], ["unused"], name="norm", epsilon=epsilon),
        ]
        values = [[onnx.helper.make_tensor_value_info(name, 1, ["batch", 4])] for name in ("image", "logits")]
        model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", *values, initializers))
        onnx.helper.set_model_props(model, {"exporter.weights_sha256": str(weight)})
        return make_model(model.SerializeToString())

    return make


@pytest.fixture
def make_plan(config, tmp_path):
    """Return a function that builds a plan of a model."""

    def make(model, **settings):
        chosen = config.replace(**{"refittable": True, **settings})
        return build_engine(model, tmp_path / "old.plan", chosen, parse_profiles((), model.inputs, batch=8), key="0" * 64)

    return make


@pytest.mark.parametrize("change", [{"axis": 2}, {"operator": "Add"}, {"epsilon": 1e-3}], ids=str)
def test_only_weights_may_differ(make_network, change):
    """Other floating weights leave the structure as it is; other whole numbers, operators and attributes do not."""
    digest = structure_digest(make_network())
    assert structure_digest(make_network(weight=2.0)) == digest
    assert structure_digest(make_network(**change)) != digest


def test_scales_of_8_bits_are_no_weights(make_model):
    """An engine has them built in: other ranges are another network, another weight behind the same scale is not."""
    import onnx.parser

    text = """<ir_version: 10, opset_import: ["": 20]> g (float[batch,4] image) => (float[batch,4] logits)
    <float s = {%s}, float[4] w = {%s, 1, 1, 1}, int8 z = {0}>
    { q = QuantizeLinear(image, s, z) d = DequantizeLinear(q, s, z) logits = Mul(d, w) }"""
    digests = [
        structure_digest(make_model(onnx.parser.parse_model(text % numbers).SerializeToString())) for numbers in ((0.5, 2), (0.5, 3), (0.25, 2))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_refit(make_network, make_plan, config, tmp_path):
    """The new plan has the new weights, the old settings and profiles, and says what both were made from."""
    old = make_plan(make_network(weight=1.0))
    model = make_network(weight=2.0)
    new = refit_engine(old, model, tmp_path / "out" / "new.plan", config)
    assert json.loads(new.path.read_bytes())["weights"] != json.loads(old.path.read_bytes())["weights"]
    assert (new.profiles, new.inputs, new.refittable) == (old.profiles, old.inputs, True)
    assert dict(new.provenance.made_from) == {"onnx": str(model.digest), "plan": str(old.digest)}
    assert new.provenance.settings == old.provenance.settings
    again = refit_engine(new, make_network(weight=3.0), tmp_path / "out" / "newer.plan", config)
    assert again.provenance.made_from["plan"] == str(new.digest)


def test_a_stripped_plan(make_network, make_plan, config, tmp_path):
    """A plan without weights runs nowhere and is packaged for nobody until a refit has put some in; then it is a plan like any other."""
    old = make_plan(make_network(), refittable=False, stripped=True)
    assert json.loads(old.path.read_bytes())["weights"] is None
    with pytest.raises(ArtifactError, match="without its weights") as caught, TensorrtRunner(old, config.replace(python="none")):
        pass
    assert caught.value.code == "E547"
    with pytest.raises(ArtifactError, match="without its weights"):
        write_repository(old, tmp_path / "models", "digits", Serving())
    new = refit_engine(old, make_network(weight=2.0), tmp_path / "new.plan", config)
    assert (new.stripped, new.refittable) == (False, True)
    assert json.loads(new.path.read_bytes())["weights"] is not None
    with TensorrtRunner(new, config) as runner:
        assert runner.infer({"image": np.ones((2, 1, 8, 8), np.float32)})["logits"].shape == (2, 10)


def test_another_network_is_refused(make_network, make_plan, config, tmp_path):
    """Weights of another structure are refused before TensorRT is asked, and nothing is written."""
    old = make_plan(make_network())
    with pytest.raises(EngineBuildError, match="not the network") as caught:
        refit_engine(old, make_network(operator="Add"), tmp_path / "new.plan", config.replace(python="none"))
    assert caught.value.code == "E543"
    assert not (tmp_path / "new.plan").exists()


def test_an_engine_that_was_not_built_for_it_is_refused(make_network, make_plan, config, tmp_path):
    """Without ``refittable`` an engine keeps its weights, and the message says how to build another."""
    model = make_network()
    with pytest.raises(EngineBuildError, match="takes no new weights") as caught:
        refit_engine(make_plan(model, refittable=False), model, tmp_path / "new.plan", config)
    assert caught.value.code == "E542"
    assert "--refittable" in caught.value.help


@pytest.mark.parametrize("release", [RELEASES[1]], ids=str)
def test_tensorrt_8_is_refused(make_network, make_plan, config, tmp_path):
    """A plan of TensorRT 8 cannot be refitted from ONNX, which is said before anything is started."""
    model = make_network()
    with pytest.raises(EngineBuildError, match="takes no new weights") as caught:
        refit_engine(make_plan(model), model, tmp_path / "new.plan", config.replace(python="none"))
    assert "8.6.1" in caught.value.facts["found"]


def test_a_refit_that_fails_changes_nothing(make_network, make_plan, config, tmp_path, scenario):
    """If TensorRT does not take the weights, the plan that was there stays, with its sidecar."""
    old = make_plan(make_network())
    before = (old.path.read_bytes(), old.sidecar_path.read_bytes())
    scenario(refit_fails=True)
    with pytest.raises(EngineBuildError) as caught:
        refit_engine(old, make_network(weight=2.0), old.path, config)
    assert caught.value.code == "E544"
    assert (old.path.read_bytes(), old.sidecar_path.read_bytes()) == before


def test_a_plan_that_is_not_ours_is_refused(make_network, make_plan, config, tmp_path):
    """A plan is executable: without its keyed sidecar it reaches no worker."""
    old = make_plan(make_network())
    old.path.write_bytes(old.path.read_bytes() + b" ")
    with pytest.raises(ArtifactError) as caught:
        refit_engine(old, make_network(), tmp_path / "new.plan", config.replace(python="none"))
    assert caught.value.code == "E723"


def test_a_refittable_engine_is_never_raced(make_network, make_plan):
    """No claim of latency is made with an engine that is slower than the one that is delivered."""
    model = make_network()
    (candidate,) = candidates_of(make_plan(model), Config())
    assert "refittable" in candidate.not_raced
    (candidate,) = candidates_of(make_plan(model, refittable=False), Config())
    assert candidate.not_raced == ""


def test_the_command_refits_and_checks(digits, run_cli, config):
    """``build-trt --refit`` bakes, folds, exports and refits, and its status is that of parity: the stand-in's network is another, so 3."""
    env = {"EXPORTER_TENSORRT_PYTHON": config.python, "EXPORTER_TENSORRT_CACHE": str(digits / "cache")}
    built = run_cli("build-trt", "--refittable", "-o", "old.plan", cwd=digits, env=env)
    assert built.returncode == 0, built.stderr
    done = run_cli("build-trt", "--refit", "old.plan", "digits.pt", "-o", "new.plan", "--json", "--quiet", cwd=digits, env=env)
    assert done.returncode == 3, done.stderr
    result = json.loads(done.stdout)
    assert [(verdict["check"], verdict["subject"], verdict["outcome"]) for verdict in result["verdicts"]] == [("parity", "tensorrt", "FAIL")]
    assert set(result["plan"]["provenance"]["made_from"]) == {"onnx", "plan"}
    assert (digits / "new.plan.json").is_file()
    raced = run_cli("bench", "new.plan", "--json", "--quiet", cwd=digits, env=env)
    (verdict,) = json.loads(raced.stdout)["verdicts"]
    assert (verdict["check"], verdict["outcome"]) == ("latency", "NOT_RUN")
    assert "refittable" in verdict["reason"]
