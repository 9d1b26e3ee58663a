"""What Triton is told of an artefact, read back with Triton's own protobuf message."""

from __future__ import annotations

import pytest

from exporter.artifacts import TensorSpec
from exporter.errors import ConfigError, ModelNotSupported
from exporter.packaging import Serving, write_repository


@pytest.fixture
def configure(parse, tmp_path):
    """Return a function that packages an artefact and returns the parsed configuration."""

    def make(artefact, **serving):
        package = write_repository(artefact, tmp_path / "models", "digits", Serving(**serving))
        return parse(package.path / "config.pbtxt"), package

    return make


def test_a_plan(configure, make_plan, schema):
    """A plan has its backend, its tensors without the batch axis, the batch of its profile, and runs on GPUs."""
    config, _ = configure(make_plan(), instances=2)
    assert (config.name, config.platform, config.backend, config.max_batch_size) == ("digits", "tensorrt_plan", "tensorrt", 64)
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [("image", schema.TYPE_FP32, [1, 8, 8])]
    assert [(t.name, t.data_type, list(t.dims)) for t in config.output] == [("logits", schema.TYPE_FP32, [10])]
    assert list(config.dynamic_batching.preferred_batch_size) == [32]
    assert config.dynamic_batching.max_queue_delay_microseconds == 100
    (group,) = config.instance_group
    assert (group.count, group.kind, list(group.profile)) == (2, schema.ModelInstanceGroup.KIND_GPU, [])


def test_lineage_is_in_the_parameters(configure, make_plan):
    """The parameters say what the model was made from, exactly, whatever characters are in it."""
    plan = make_plan()
    config, _ = configure(plan)
    found = {key: value.string_value for key, value in config.parameters.items()}
    assert found["exporter.checkpoint"] == 'a "quoted"\npath\\é.pt'
    assert found["exporter.weights"] == "ema"
    assert found["exporter.plan_sha256"] == plan.digest.hex
    assert found["exporter.made_from_onnx"] == f"sha256:{'a' * 64}"
    assert found["exporter.tensorrt"] == "11.4.0.106"


def test_an_onnx_model(configure, make_onnx, schema):
    """An ONNX model has the largest batch that is checked, no preferred batch, and runs where Triton finds a place."""
    config, _ = configure(make_onnx(), checked_batch=48)
    assert (config.platform, config.backend, config.max_batch_size) == ("onnxruntime_onnx", "onnxruntime", 48)
    assert list(config.dynamic_batching.preferred_batch_size) == []
    assert config.HasField("dynamic_batching")
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_AUTO
    config, _ = configure(make_onnx(), device="cpu", max_batch=4)
    assert (config.instance_group[0].kind, config.max_batch_size) == (schema.ModelInstanceGroup.KIND_CPU, 4)


def test_several_profiles_are_all_used(configure, make_plan):
    """Triton uses the first profile alone unless it is told otherwise; the batch goes as far as the widest."""
    profiles = ({"image": ((1, 1, 8, 8), (8, 1, 8, 8), (32, 1, 8, 8))}, {"image": ((33, 1, 8, 8), (64, 1, 8, 8), (128, 1, 8, 8))})
    config, package = configure(make_plan(profiles=profiles))
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert (config.max_batch_size, list(config.dynamic_batching.preferred_batch_size)) == (128, [8, 64])
    assert package.remarks == ()


@pytest.mark.parametrize(
    ("ranges", "missing"),
    [
        ([((4, 1, 8, 8), (8, 1, 8, 8), (32, 1, 8, 8))], "batch of 1"),
        ([((1, 1, 8, 8), (1, 1, 8, 8), (1, 1, 8, 8)), ((64, 1, 8, 8), (64, 1, 8, 8), (64, 1, 8, 8))], "batch of 2"),
    ],
    ids=["from 4 on", "1 or 64"],
)
def test_a_batch_that_no_profile_takes_is_never_formed(configure, make_plan, ranges, missing):
    """Where Triton could form a batch that the engine refuses, there is no dynamic batching, and the package says why."""
    config, package = configure(make_plan(profiles=tuple({"image": shapes} for shapes in ranges)))
    assert not config.HasField("dynamic_batching")
    assert missing in package.remarks[0]


def test_profiles_of_other_sizes_each_need_their_batches(configure, make_plan):
    """A profile for larger images that takes fewer of them at once ends dynamic batching: Triton knows one largest batch."""
    inputs = (TensorSpec("image", ("batch", 3, "height", "width"), "float32"),)
    profiles = ({"image": ((1, 3, 8, 8), (8, 3, 8, 8), (32, 3, 8, 8))}, {"image": ((1, 3, 16, 16), (4, 3, 16, 16), (4, 3, 16, 16))})
    config, package = configure(make_plan(inputs=inputs, profiles=profiles))
    assert list(config.input[0].dims) == [3, -1, -1]
    assert not config.HasField("dynamic_batching")
    assert "batch of 5 of some shapes" in package.remarks[0]


@pytest.mark.parametrize(
    "inputs",
    [(TensorSpec("image", (1, 1, 8, 8), "float32"),), (TensorSpec("image", ("batch", 4), "float32"), TensorSpec("scale", (2,), "float32"))],
    ids=["fixed batch", "an input without a batch"],
)
def test_without_a_common_batch_axis_dims_are_whole(configure, make_onnx, inputs):
    """A model whose tensors do not share a batch axis has the batch size 0, which is Triton's word for none, and whole dims."""
    config, package = configure(make_onnx(inputs))
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [list(t.dims) for t in config.input] == [[size if isinstance(size, int) else -1 for size in spec.shape] for spec in inputs]
    assert "do not share" in package.remarks[0]


def test_a_tensor_of_the_batch_alone_is_reshaped(configure, make_onnx):
    """Triton wants at least one axis beside the batch: such a tensor has one of size 1 that it takes away again."""
    config, _ = configure(make_onnx((TensorSpec("length", ("batch",), "int64"),)))
    assert list(config.input[0].dims) == [1]
    assert config.input[0].HasField("reshape")
    assert list(config.input[0].reshape.shape) == []


def test_dtypes_are_the_engines(configure, make_plan, schema):
    """TensorRT 8 computes int64 as int32, and it is the engine that Triton asks."""
    outputs = (TensorSpec("label", ("batch", 1), "int64"),)
    config, _ = configure(make_plan(outputs=outputs, dtypes={"image": "HALF", "label": "INT32"}))
    assert (config.input[0].data_type, config.output[0].data_type) == (schema.TYPE_FP16, schema.TYPE_INT32)


@pytest.mark.parametrize(
    ("serving", "text"),
    [({"max_batch": 65}, "larger batch"), ({"device": "cpu"}, "on a CPU")],
    ids=["beyond the profile", "on a CPU"],
)
def test_what_a_plan_cannot_do_is_refused(configure, make_plan, serving, text):
    """What the engine cannot do is a matter of usage, and nothing is written."""
    with pytest.raises(ConfigError, match=text) as caught:
        configure(make_plan(), **serving)
    assert caught.value.code == "E533"


def test_a_batch_for_a_model_without_one_is_refused(configure, make_onnx):
    """A largest batch means nothing to a model with a fixed batch."""
    with pytest.raises(ConfigError, match="no batch of its own"):
        configure(make_onnx((TensorSpec("image", (1, 4), "float32"),)), max_batch=8)


def test_a_dtype_that_triton_lacks_is_refused(configure, make_plan):
    """A tensor that Triton has no name for is named."""
    with pytest.raises(ModelNotSupported, match="no name for the dtype") as caught:
        configure(make_plan(dtypes={"image": "FP8", "logits": "FLOAT"}))
    assert (caught.value.code, caught.value.facts["tensor"], caught.value.facts["found"]) == ("E532", "image", "FP8")
