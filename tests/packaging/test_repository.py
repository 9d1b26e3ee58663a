"""A repository is written whole or not at all, and never loses a version."""

from __future__ import annotations

import json

import pytest

from exporter.artifacts import TensorSpec
from exporter.errors import ArtifactError, ConfigError
from exporter.packaging import Serving, write_repository


def tree(folder) -> dict[str, bytes]:
    """Return relative path -> bytes of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def models(tmp_path):
    """Where the repository is to be."""
    return tmp_path / "models"


def add(artefact, models, **serving):
    """Package as ``digits``."""
    return write_repository(artefact, models, "digits", Serving(**serving))


def test_a_new_model(make_plan, models):
    """A model has a configuration, and a first version with the plan as it is and its lineage."""
    package = add(make_plan(), models)
    assert (package.version, package.state, package.config) == (1, "made", "written")
    assert sorted(tree(models)) == ["digits/1/lineage.json", "digits/1/model.plan", "digits/config.pbtxt", "digits/config.pbtxt.json"]
    assert (models / "digits/1/model.plan").read_bytes() == b"plan"
    assert json.loads((models / "digits/1/lineage.json").read_text())["lineage"]["weights"] == "ema"


def test_the_same_artefact_is_up_to_date(make_plan, models):
    """Packaging again what the newest version holds adds none; a changed setting is written."""
    add(make_plan(), models)
    before = tree(models)
    package = add(make_plan(), models)
    assert (package.version, package.state) == (1, "up to date")
    assert tree(models) == before
    assert add(make_plan(), models, instances=3).state == "up to date"
    assert b"count: 3" in (models / "digits/config.pbtxt").read_bytes()


def test_another_artefact_is_another_version(make_plan, models, parse):
    """A new plan gets the next number after the highest, versions before it stay byte for byte, and the lineage is the new one's."""
    add(make_plan(), models)
    (models / "digits/7").mkdir()
    (models / "digits/7/model.plan").write_bytes(b"of somebody else")
    before = {name: content for name, content in tree(models).items() if "config" not in name}
    plan = make_plan(b"another plan")
    package = add(plan, models)
    assert (package.version, package.state, package.config) == (8, "made", "written")
    after = tree(models)
    assert {name: after[name] for name in before} == before
    assert after["digits/8/model.plan"] == b"another plan"
    assert parse(models / "digits/config.pbtxt").parameters["exporter.plan_sha256"].string_value == plan.digest.hex


def test_a_narrower_version_narrows_the_batch_for_all(make_plan, models, parse):
    """The configuration serves every version, so its batch is the smallest of their largest, whichever came first."""
    wide = {"image": ((1, 1, 8, 8), (32, 1, 8, 8), (64, 1, 8, 8))}
    narrow = {"image": ((1, 1, 8, 8), (8, 1, 8, 8), (8, 1, 8, 8))}
    add(make_plan(b"1", profiles=(wide,)), models)
    assert add(make_plan(b"2", profiles=(narrow,)), models).max_batch == 8
    assert add(make_plan(b"3", profiles=(wide,)), models).max_batch == 8
    assert parse(models / "digits/config.pbtxt").max_batch_size == 8


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"inputs": (TensorSpec("picture", ("batch", 1, 8, 8), "float32"),), "profiles": ({"picture": ((1, 1, 8, 8),) * 3},)}, "input image"),
        ({"outputs": (TensorSpec("logits", ("batch", 100), "float32"),)}, "output logits"),
        ({"outputs": (TensorSpec("logits", ("batch", 10), "float16"),)}, "output logits"),
        ({"outputs": (TensorSpec("logits", (10,), "float32"),)}, "max_batch_size"),
    ],
    ids=["name", "size", "dtype", "no batch"],
)
def test_another_interface_is_refused(make_plan, models, change, text):
    """A version with other inputs or outputs than the model has is refused, and nothing is changed."""
    add(make_plan(), models)
    before = tree(models)
    with pytest.raises(ArtifactError, match="another interface") as caught:
        add(make_plan(b"new", **change), models)
    assert caught.value.code == "E535"
    assert text in caught.value.facts["found"]
    assert tree(models) == before


def test_another_backend_is_refused(make_plan, make_onnx, models):
    """A plan and an ONNX model cannot be versions of one model."""
    add(make_plan(outputs=(TensorSpec("image_out", ("batch", 1, 8, 8), "float32"),)), models)
    with pytest.raises(ArtifactError) as caught:
        add(make_onnx(), models, checked_batch=64)
    assert caught.value.facts["found"] == "backend tensorrt"


def test_an_edited_configuration_is_kept(make_plan, models):
    """What somebody wrote into config.pbtxt stays byte for byte when a version is added; the lineage lies with the version."""
    add(make_plan(), models)
    config = models / "digits/config.pbtxt"
    config.write_text("version_policy: { all {} }\n" + config.read_text().replace("count: 1", "count: 5 # tuned"))
    edited = config.read_bytes()
    package = add(make_plan(b"another plan"), models)
    assert (package.version, package.config) == (2, "kept")
    assert config.read_bytes() == edited
    assert "2/lineage.json" in package.remarks[-1]


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("FP32", "FP16", "E535"),
        ("max_batch_size: 64", "max_batch_size: 65", "E535"),
        ('"digits"', '"digits', "E536"),
        ("max_batch_size: 64", "max_batch_size: many", "E536"),
    ],
    ids=["dtype", "batch", "no text format", "no number"],
)
def test_an_edited_configuration_that_does_not_fit_is_refused(make_plan, models, old, new, code):
    """An edited configuration is read, and a version that it would not serve is refused."""
    add(make_plan(), models)
    config = models / "digits/config.pbtxt"
    config.write_text(config.read_text().replace(old, new))
    before = tree(models)
    with pytest.raises(ArtifactError) as caught:
        add(make_plan(b"new"), models)
    assert caught.value.code == code
    assert tree(models) == before


def test_a_configuration_that_leaves_triton_to_ask_the_model_is_kept(make_plan, models):
    """Triton completes a configuration without tensors from the plan itself; there is nothing to disagree with."""
    (models / "digits").mkdir(parents=True)
    (models / "digits/config.pbtxt").write_text('platform: "tensorrt_plan" max_batch_size: 8')
    assert add(make_plan(), models).config == "kept"


@pytest.mark.parametrize("existing", [False, True], ids=["new model", "new version"])
def test_a_failure_leaves_the_repository_as_it_was(make_plan, models, monkeypatch, existing):
    """If anything fails on the way, up to the last rename, every file is as before and no draft is left."""
    if existing:
        add(make_plan(), models)
    before = tree(models)

    def fail(draft, place):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("exporter.packaging.repository._take_place", fail)
    with pytest.raises(ArtifactError, match="could not be written"):
        add(make_plan(b"new"), models)
    assert tree(models) == before
    assert [path.name for path in models.rglob("*") if "tmp" in path.name] == []


def test_a_plan_that_changed_is_refused(make_plan, models):
    """A plan with other bytes than its record never reaches the repository."""
    plan = make_plan()
    plan.path.write_bytes(b"other")
    with pytest.raises(ArtifactError, match="differs") as caught:
        add(plan, models)
    assert caught.value.code == "E723"
    assert tree(models) == {}


def test_another_program_is_never_overwritten(make_plan, models, monkeypatch):
    """A version that appeared meanwhile is kept, and the command says so."""
    add(make_plan(), models)
    monkeypatch.setattr("exporter.packaging.repository._versions", lambda home: [])
    with pytest.raises(ArtifactError, match="meanwhile") as caught:
        add(make_plan(b"new"), models)
    assert caught.value.code == "E537"
    assert (models / "digits/1/model.plan").read_bytes() == b"plan"


def test_external_data_come_along(make_onnx, models):
    """The weights that lie beside an ONNX file lie beside it in the version, and Triton's runtime can open it there."""
    import onnxruntime

    add(make_onnx(external=True), models)
    assert {"digits/1/model.onnx", "digits/1/weights.data"} <= set(tree(models))
    onnxruntime.InferenceSession(models / "digits/1/model.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b"])
def test_a_name_is_a_name(make_plan, models, name):
    """A name that would lead elsewhere, or that Triton cannot have, is refused."""
    with pytest.raises(ConfigError) as caught:
        write_repository(make_plan(), models, name, Serving())
    assert caught.value.code == "E534"
    assert not models.exists()


def test_a_file_is_no_repository(make_plan, models):
    """A file where the repository should be is refused."""
    models.write_text("")
    with pytest.raises(ArtifactError) as caught:
        add(make_plan(), models)
    assert caught.value.code == "E531"
