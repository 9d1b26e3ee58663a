"""TensorRT 8 reads opset 17: ``build-trt`` lowers by itself, proves that the function is the same, and keeps what it made."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

sys.path.insert(0, str(Path(__file__).parent / "contract"))

from bindings import stand_in_python
from releases import RELEASES

from exporter.artifacts import Profile
from exporter.config import Config, load_config
from exporter.errors import ArtifactError, ExportError, SampleError
from exporter.files import digest_of_file
from exporter.older_opset import check_with, needs_lowering
from exporter.onnx_export import lower_onnx, open_onnx
from exporter.workspace import Workspace

GELU = '<ir_version: 9, opset_import: ["": 20]> g (float[batch,4,length] image) => (float[batch,4,length] logits) { logits = Gelu(image) }'


def model_at(path: Path, text: str = GELU):
    """Write a model given as text and open it."""
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    return open_onnx(path)


def workspace_with(digits: Path, release, tmp_path: Path) -> Workspace:
    """Return a workspace whose TensorRT is a stand-in on the real bindings of ``release``."""
    config = load_config(digits / "exporter.toml", environment={}, flags={"tensorrt": {"python": str(stand_in_python(release, tmp_path))}})
    return Workspace(config)


def test_the_engine_of_tensorrt_8_is_built_from_opset_17(digits, tmp_path):
    """The second model lies beside the first, is in the records and in the lineage with its distance, and is not made again."""
    workspace = workspace_with(digits, RELEASES[0], tmp_path)
    plan = workspace.plan
    older = workspace.onnx_opset17
    assert (older.path.name, older.opset, older.ir_version, workspace.onnx.opset) == ("digits.opset17.onnx", 17, 8, 20)
    assert older.provenance.made_from == {"onnx": str(workspace.onnx.digest)}
    assert plan.path.name == "digits.plan"
    assert plan.provenance.made_from == {"onnx": str(older.digest)}
    lineage = workspace.lineage()
    assert (lineage["opset"], lineage["lowered_from_opset"], lineage["onnx_opset17_sha256"]) == ("17", "20", older.digest.hex)
    assert float(lineage["departure_from_opset_20"]) <= 1e-5
    assert lineage["weights"] == "ema:model_ema"
    assert [(record.stage, record.state) for record in workspace.records[-3:]] == [("onnx", "made"), ("onnx", "made"), ("engine", "made")]

    again = workspace_with(digits, RELEASES[0], tmp_path)
    assert again.plan == plan
    assert {record.state for record in again.records} == {"up to date"}
    assert not [path.name for path in older.path.parent.glob(".*")]


def test_newer_releases_read_the_model_as_it_is(digits, tmp_path):
    """From TensorRT 10 on nothing is lowered."""
    workspace = workspace_with(digits, RELEASES[3], tmp_path)
    assert workspace.plan.provenance.made_from == {"onnx": str(workspace.onnx.digest)}
    assert workspace.onnx_opset17 is None


@pytest.mark.parametrize(
    ("opset", "release", "expected"), [(18, "8.6.1.6", True), (17, "8.6.1", False), (18, "10.0.1", False), (23, "11.4.0.106", False)]
)
def test_who_needs_it(tmp_path, opset, release, expected):
    """Only a release before 10, and only for an opset above 17."""
    model = dataclasses.replace(model_at(tmp_path / "net.onnx"), opset=opset)
    assert needs_lowering(model, release) is expected


def test_a_lowered_model_that_computes_something_else_is_not_written(tmp_path):
    """The check runs before the file has its name: an output that departs is named with its distance, and nothing is left."""
    model = model_at(tmp_path / "net.onnx", GELU.replace("length", "8"))
    other = model_at(tmp_path / "other.onnx", GELU.replace("length", "8").replace("Gelu(", 'Gelu<approximate = "tanh">('))
    check = check_with(Config(), None)
    with pytest.raises(ExportError, match="logits: relative L2") as caught:
        lower_onnx(model, tmp_path / "out" / "older.onnx", key="k", check=lambda newer, older: check(other, older))
    assert caught.value.code == "E453"
    assert not list((tmp_path / "out").glob("*")) + list((tmp_path / "out").glob(".*"))


def test_a_profile_says_the_size_of_a_dynamic_axis(tmp_path):
    """A model from elsewhere with a dynamic axis is checked at the profile's usual size; without one the missing size is named."""
    model = model_at(tmp_path / "net.onnx")
    profile = Profile({"image": ((1, 4, 2), (2, 4, 6), (4, 4, 8))})
    older = lower_onnx(model, tmp_path / "older.onnx", key="k", check=check_with(Config(), None, (profile,)))
    assert float(older.metadata["exporter.departure_from_opset_20"]) <= 1e-5
    with pytest.raises(SampleError, match="E616"):
        lower_onnx(model, tmp_path / "other.onnx", key="k", check=check_with(Config(), None))


def test_a_file_that_has_changed_is_refused(tmp_path):
    """What is lowered are the bytes that were exported and checked."""
    model = model_at(tmp_path / "net.onnx")
    model.path.write_bytes(model.path.read_bytes() + onnx.ModelProto(doc_string="x").SerializeToString())
    with pytest.raises(ArtifactError) as caught:
        lower_onnx(model, tmp_path / "older.onnx", key="k")
    assert caught.value.code == "E454"


def test_same_bytes(tmp_path):
    """The same model gives the same file."""
    model = model_at(tmp_path / "net.onnx")
    first, second = (lower_onnx(model, tmp_path / name / "older.onnx", key="k") for name in "ab")
    assert digest_of_file(first.path) == digest_of_file(second.path)
    assert np.array_equal(first.path.read_bytes(), second.path.read_bytes())
