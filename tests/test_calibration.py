"""8 bits: calibrated on the user's samples or not at all, the same bytes for the same samples, and judged by what 8 bits cost the network."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest

sys.path.insert(0, str(Path(__file__).parent / "contract"))

from bindings import stand_in_python
from releases import RELEASES

from exporter.artifacts import Outcome
from exporter.calibration import calibration_of, digest_of_calibration
from exporter.config import Config, OnnxConfig, ParityConfig, SamplesConfig, load_config
from exporter.errors import ConfigError, EngineBuildError, ExportError, SampleError
from exporter.files import digest_of_file
from exporter.gates import Gates, candidates_of
from exporter.older_opset import check_with, lower_for_tensorrt_8
from exporter.onnx_export import export_onnx, onnx_key, open_onnx
from exporter.runners import OnnxruntimeRunner
from exporter.samples import Samples
from exporter.workspace import Workspace

CASES = [("int8", "entropy"), ("int8", "percentile"), ("fp8", "entropy")]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, repository, state_dir):
    """The digits, traced and folded once."""
    folder = tmp_path_factory.mktemp("digits")
    shutil.copytree(repository / "fixtures" / "digits", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".exporter", "__pycache__"))
    workspace = Workspace(load_config(folder / "exporter.toml", environment={}))
    assert workspace.graph.folded
    return workspace


def in_8_bits(workspace: Workspace, precision: str, **settings) -> Workspace:
    """Return the same project with another ``[onnx]``, the same one for the same settings: what was made before stays."""
    config = workspace.config.replace(onnx=workspace.config.onnx.replace(precision=precision, **settings))
    made = workspace.__dict__.setdefault("made_in_8_bits", {})
    if config.onnx not in made:
        made[config.onnx] = other = Workspace(config, outputs={"onnx": workspace.folder / f"{precision}-{len(made)}.onnx"})
        other.__dict__.update(graph=workspace.graph, weights=workspace.weights)
    return made[config.onnx]


def judged(workspace: Workspace, model=None):
    """Return the verdict of parity of the ONNX file."""
    (verdict,) = Gates(workspace).parity(candidates_of(model or workspace.onnx, workspace.config))
    return verdict


@pytest.mark.parametrize(("precision", "calibration"), CASES, ids=["-".join(case) for case in CASES])
def test_the_file_passes_and_the_digits_are_still_read(workspace, precision, calibration):
    """Parity is judged on the recorded samples, with what 8 bits cost the unfused network; of 360 digits at most 2 more are misread."""
    project = in_8_bits(workspace, precision, calibration=calibration)
    verdict = judged(project)
    assert verdict.outcome is Outcome.PASS, verdict.reason
    (output,) = verdict.evidence.outputs
    assert (verdict.evidence.precision, {feed.partition(" samples")[1] for feed in verdict.evidence.feeds}) == (precision, {" samples"})
    assert any("beyond the ranges" in remark and "zeros" in remark for remark in verdict.evidence.remarks)
    assert 0.3 < output.relative_l2 / output.own_error < 5
    (metric,) = Gates(project).metric(candidates_of(project.onnx, project.config))
    values = metric.evidence.values
    assert values["onnx"] >= values["ema"] - 2 / 360


@pytest.mark.parametrize("tensor", ["relu_2", "stages.block2.grouped.weight"])
def test_a_wrong_scale_fails(workspace, tensor):
    """A scale that is half of what it should be in one layer is seen, and where it is."""
    project = in_8_bits(workspace, "int8", calibration="minmax")
    proto = onnx.load(project.onnx.path)
    (scale,) = [kept for kept in proto.graph.initializer if kept.name.startswith(f"{tensor}/int8") and kept.name.endswith("/scale")]
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(0.5), scale.name))
    path = workspace.folder / "broken.onnx"
    path.write_bytes(proto.SerializeToString())
    broken = Workspace(project.config)
    broken.__dict__.update(graph=workspace.graph, weights=workspace.weights, onnx=open_onnx(path))
    assert judged(project).outcome is Outcome.PASS
    verdict = judged(broken)
    assert verdict.outcome is Outcome.FAIL
    assert "relative L2" in verdict.reason
    assert "largest step" in verdict.evidence.localisation or "first divergence" in verdict.evidence.localisation


def test_the_same_samples_give_the_same_bytes(workspace, tmp_path):
    """A second export, made anew, is the first one."""
    project = in_8_bits(workspace, "int8")
    first = project.onnx.digest
    config, samples = project.config, project.samples
    again = export_onnx(workspace.graph, tmp_path / "again.onnx", config.onnx, key="k", calibrate=calibration_of(config, samples))
    assert again.digest == first == digest_of_file(project.onnx.path)


def test_other_samples_make_another_file(workspace):
    """Number and digest of the samples and the method are in the lineage, and in the key; without 8 bits they are not."""
    config, samples = in_8_bits(workspace, "int8").config, workspace.samples
    digests = {
        digest_of_calibration(config, samples),
        digest_of_calibration(config.replace(samples=config.samples.replace(limit=100)), samples),
        digest_of_calibration(config, Samples({"image": samples.inputs["image"] + 1}, None)),
    }
    assert len(digests) == 3
    keys = {onnx_key(workspace.graph.digest, config.onnx, calibration=digest) for digest in digests}
    assert len(keys) == 3
    assert digest_of_calibration(workspace.config, None) == ""
    lineage = in_8_bits(workspace, "int8", calibration="percentile", calibration_percentile=99.0).onnx.provenance.lineage
    assert lineage["calibration"] == "percentile 99, 256 samples"
    assert lineage["calibration_sha256"] == digest_of_calibration(config, samples)
    assert lineage["calibration_clipped"].endswith("% in relu")
    assert lineage["precision_shares"] == "float32 55 %, int8 45 %"


def test_without_samples_nothing_is_quantised(workspace):
    """The message comes before any work, and says what to do."""
    project = Workspace(in_8_bits(workspace, "int8").config.replace(samples=SamplesConfig()))
    with pytest.raises(SampleError, match="recorded samples") as caught:
        _ = project.onnx
    assert caught.value.code == "E481"
    assert caught.value.help.startswith('[samples] path = "samples.npz"')
    assert not {"weights", "graph"} & set(project.__dict__)


def test_samples_that_make_infinity_are_refused(workspace, tmp_path):
    """A range that is none is said with the tensors' names; nothing is written."""
    image = workspace.samples.inputs["image"][:4].copy()
    image[1, 0, 2, 2] = np.inf
    config = in_8_bits(workspace, "int8").config
    calibrate = calibration_of(config, Samples({"image": image}, None))
    with pytest.raises(SampleError, match="no finite range") as caught:
        export_onnx(workspace.graph, tmp_path / "net.onnx", config.onnx, key="k", calibrate=calibrate)
    assert caught.value.code == "E482"
    assert caught.value.facts["found"].startswith("NaN or infinity in image")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "code", "kind"),
    [
        ({"precision": "fp8", "opset": 18}, "E483", ConfigError),
        ({"precision": "int8"}, "E484", ExportError),
        ({"precision": "int8", "float32": ("*",)}, "E486", ExportError),
    ],
    ids=["opset", "nothing to measure with", "everything an island"],
)
def test_what_cannot_be_quantised_is_refused(workspace, tmp_path, settings, code, kind):
    """By name, before anything is written."""
    config = OnnxConfig(**settings)
    calibrate = None if code == "E484" else calibration_of(Config(onnx=config), workspace.samples)
    with pytest.raises(kind) as caught:
        export_onnx(workspace.graph, tmp_path / "net.onnx", config, key="k", calibrate=calibrate)
    assert caught.value.code == code
    assert not list(tmp_path.iterdir())


def test_islands_stay_float32(workspace):
    """First and last layer, by the patterns that also name the islands of half precision."""
    model = in_8_bits(workspace, "int8", float32=("stem*", "head")).onnx
    proto = onnx.load(model.path)
    inputs = {node.name: list(node.input) for node in proto.graph.node}
    assert inputs["node_conv2d"][:2] == ["image", "stem.0.weight"]
    assert inputs["node_linear_1"][:2] == ["relu_10", "head.weight"]
    assert inputs["node_conv2d_1"][0] == "relu/int8/float32"
    assert model.metadata["exporter.float32"] == '{"node_conv2d": "asked for", "node_linear_1": "asked for"}'


def test_a_tensor_that_is_always_zero_has_no_scale(workspace, tmp_path):
    """Its readers stay in float32, and the file says why."""
    config = in_8_bits(workspace, "int8").config
    calibrate = calibration_of(config, Samples({"image": np.zeros((2, 1, 8, 8), np.float32)}, None))
    model = export_onnx(workspace.graph, tmp_path / "net.onnx", config.onnx, key="k", calibrate=calibrate)
    assert '"node_conv2d": "always zero"' in model.metadata["exporter.float32"]


def test_without_recorded_samples_nothing_is_judged(workspace):
    """Ranges hold for the samples: random inputs are no evidence, and a check that did not run is no pass."""
    project = in_8_bits(workspace, "int8")
    model = project.onnx
    unlabelled = Workspace(project.config.replace(samples=SamplesConfig(random=4), parity=ParityConfig(batches=(2,))))
    unlabelled.__dict__.update(graph=workspace.graph, weights=workspace.weights, onnx=model)
    verdict = judged(unlabelled, model)
    assert (verdict.outcome, verdict.required) == (Outcome.NOT_RUN, True)
    assert "recorded samples" in verdict.reason


def test_fp8_runs_as_its_operators_say(workspace):
    """ONNX Runtime agrees with ONNX's own definitions, which its optimiser does not (it has no fused operators in fp8); it does not race."""
    model = in_8_bits(workspace, "fp8").onnx
    image = workspace.samples.inputs["image"][:4]
    want = onnx.reference.ReferenceEvaluator(onnx.load(model.path)).run(None, {"image": image})[0]
    with OnnxruntimeRunner(model) as runner:
        assert runner.settings["optimization"] == "ORT_DISABLE_ALL"
        np.testing.assert_allclose(runner.infer({"image": image})["logits"], want, rtol=1e-4, atol=1e-4)
    assert "emulates" in candidates_of(model, workspace.config)[0].not_raced
    assert not candidates_of(in_8_bits(workspace, "int8").onnx, workspace.config)[0].not_raced


def test_files_of_others_are_taken_as_they_are(workspace, tmp_path):
    """Without a word of ours in it a file with pairs has the precision of the pairs, and is judged by it."""
    for precision in ("int8", "fp8"):
        project = in_8_bits(workspace, precision)
        proto = onnx.load(project.onnx.path)
        del proto.metadata_props[:]
        path = tmp_path / f"{precision}.onnx"
        path.write_bytes(proto.SerializeToString())
        model = open_onnx(path)
        assert model.precision == precision
        verdict = judged(project, model)
        assert (verdict.outcome, verdict.evidence.precision) == (Outcome.PASS, precision)


def test_tensorrt_8_gets_int8_in_opset_17_and_no_fp8(workspace, tmp_path):
    """The file in opset 17 computes the same as the newer one; fp8 is refused by name before anything is lowered."""
    config, samples = in_8_bits(workspace, "int8", opset=17).config, workspace.samples
    check, calibrate = check_with(config, samples), calibration_of(config, samples)
    lowered = export_onnx(workspace.graph, tmp_path / "17.onnx", config.onnx, key="k", check_lowered=check, calibrate=calibrate)
    assert (lowered.opset, lowered.precision) == (17, "int8")
    assert float(lowered.provenance.lineage["departure_from_opset_18"]) < 1e-2
    with pytest.raises(ExportError, match="no fp8") as caught:
        lower_for_tensorrt_8(in_8_bits(workspace, "fp8").onnx, tmp_path, check)
    assert caught.value.code == "E487"


@pytest.mark.parametrize(("release", "opset"), [(RELEASES[1], 17), (RELEASES[-1], 20)], ids=str)
def test_an_engine_is_built_from_the_pairs(workspace, tmp_path, monkeypatch, release, opset):
    """On a stand-in with the release's real bindings: int8 goes to the builder in the opset that it reads, and its layers have to be int8."""
    project = in_8_bits(workspace, "int8")
    engine = project.config.tensorrt.replace(python=str(stand_in_python(release, tmp_path)), cache=tmp_path / "cache")
    built = Workspace(project.config.replace(tensorrt=engine), folder=tmp_path)
    built.__dict__.update(graph=workspace.graph, weights=workspace.weights, onnx=project.onnx)
    with pytest.raises(EngineBuildError, match="does not have the precision") as caught:
        built.build(project.onnx)  # the layers of the stand-in are in float32
    assert (caught.value.code, caught.value.facts["expected"]) == ("E507", "int8")
    monkeypatch.setenv("EXPORTER_CONTRACT_SCENARIO", json.dumps({"layer_dtype": "INT8"}))
    plan = built.build(project.onnx)
    assert (plan.precision, plan.realised_precision) == ("int8", {"int8": 1.0})
    assert plan.provenance.lineage["opset"] == str(opset)
    assert plan.provenance.lineage["calibration"] == "entropy, 256 samples"
