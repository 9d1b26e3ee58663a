"""A foreign ``.onnx`` is data: it is described where it is sound, and refused by name where it is not."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.errors import ArtifactError
from exporter.onnx_export import open_onnx

TEXT = """
<ir_version: 9, opset_import: ["" : 17]>
agraph (float[N, 3] x) => (float[N, 3] y) <float[3] w = {1, 2, 3}>
{ y = Mul(x, w) }
"""


def model() -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT)


def write(folder, proto) -> object:
    path = folder / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def external(folder, *, location="w.data", offset="0", length="12", size=12, **more):
    proto = model()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": length, **more}.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "w.data").write_bytes(np.arange(1, 1 + size // 4, dtype=np.float32).tobytes())
    return proto


def test_sound_model(tmp_path):
    """Inputs, outputs, opset and counts are told; no initializer is taken for an input."""
    got = open_onnx(write(tmp_path, model()))
    assert [(spec.name, spec.shape, spec.dtype) for spec in got.inputs] == [("x", ("N", 3), "float32")]
    assert (got.opset, got.ir_version, got.num_nodes, got.num_batch_norms) == (17, 9, 1, 0)


def test_sound_external_data(tmp_path):
    """Data beside the model, in range, are fine."""
    assert open_onnx(write(tmp_path, external(tmp_path))).num_nodes == 1


def test_lineage_of_our_own_is_read_back(tmp_path):
    """Metadata that begin with ``exporter.`` are the lineage."""
    proto = model()
    helper.set_model_props(proto, {"exporter.ema": "model_ema", "author": "someone"})
    assert open_onnx(write(tmp_path, proto)).provenance.lineage == {"ema": "model_ema"}


@pytest.mark.parametrize("content", [b"", b"not an onnx file at all", b"\x08\x09", None], ids=["empty", "text", "no graph", "missing"])
def test_file_that_is_no_model(tmp_path, content):
    """Whatever is no ONNX model is refused as such."""
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match="E421"):
        open_onnx(path)


def test_special_files_are_not_opened(tmp_path):
    """A folder and a pipe are refused at once; the pipe does not block."""
    os.mkfifo(tmp_path / "pipe.onnx")
    for path in (tmp_path, tmp_path / "pipe.onnx"):
        with pytest.raises(ArtifactError, match="E421"):
            open_onnx(path)


PLACES = ["absolute", "parent", "nested parent", "symbolic link", "linked folder", "hard link", "missing", "folder"]
PLACES += ["the model itself", "memory address", "empty", "control character"]


def hostile_external(folder):
    outside = folder.parent / "secret.bin"
    outside.write_bytes(bytes(12))
    (folder / "link.data").symlink_to(outside)
    (folder / "hard.data").write_bytes(bytes(12))
    os.link(folder / "hard.data", folder / "hard2.data")
    (folder / "sub").mkdir()
    (folder / "linked").symlink_to(folder.parent)
    return {
        "absolute": {"location": str(outside)},
        "parent": {"location": "../secret.bin"},
        "nested parent": {"location": "sub/../../secret.bin"},
        "symbolic link": {"location": "link.data"},
        "linked folder": {"location": "linked/secret.bin"},
        "hard link": {"location": "hard.data"},
        "missing": {"location": "nothing.data"},
        "folder": {"location": "sub"},
        "the model itself": {"location": "net.onnx"},
        "memory address": {"location": "*/_ORT_MEM_ADDR_/*"},
        "empty": {"location": ""},
        "control character": {"location": "w\0.data"},
    }


@pytest.mark.parametrize("case", PLACES)
def test_external_data_in_forbidden_places(tmp_path, case):
    """External data have to be a regular file of one name inside the model's folder."""
    folder = tmp_path / "in"
    folder.mkdir()
    entry = hostile_external(folder)[case]
    with pytest.raises(ArtifactError, match="E423"):
        open_onnx(write(folder, external(folder, **entry)))


@pytest.mark.parametrize(
    "entry",
    [{"offset": "-4"}, {"offset": "4"}, {"offset": "x"}, {"length": "8"}, {"length": str(2**62)}, {"basepath": "/"}, {"offset": str(2**62)}],
    ids=["negative", "beyond the end", "no number", "too short", "huge", "unknown key", "huge offset"],
)
def test_external_data_with_wrong_ranges(tmp_path, entry):
    """Offset and length have to be those of the tensor, within the file."""
    with pytest.raises(ArtifactError, match="E422"):
        open_onnx(write(tmp_path, external(tmp_path, **entry)))


def long_raw(tensor):
    tensor.CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), "w"))
    tensor.raw_data += b"1234"


def negative(tensor):
    tensor.dims[0] = -3


def both(tensor):
    tensor.CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), "w"))
    tensor.float_data.extend([1, 2, 3])


def strange(tensor):
    tensor.data_type = 99


@pytest.mark.parametrize("spoil", [long_raw, negative, both, strange])
def test_tensor_whose_data_do_not_fit_is_refused(tmp_path, spoil):
    """Shape, dtype and bytes of every tensor have to agree."""
    proto = model()
    spoil(proto.graph.initializer[0])
    with pytest.raises(ArtifactError, match="E422") as caught:
        open_onnx(write(tmp_path, proto))
    assert caught.value.facts["tensor"] == "'w'"


def test_tensor_inside_a_subgraph_is_checked(tmp_path):
    """Attributes and subgraphs hide no tensor."""
    proto = model()
    bad = numpy_helper.from_array(np.ones(3, np.float32), "hidden")
    bad.raw_data += b"1234"
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=bad)], "inner", [], [])
    proto.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner))
    with pytest.raises(ArtifactError, match="hidden"):
        open_onnx(write(tmp_path, proto))


def opset_9999(proto):
    proto.opset_import[0].version = 9999


def two_initializers(proto):
    proto.graph.initializer.append(proto.graph.initializer[0])


def recursive_function(proto):
    body = [helper.make_node("Again", ["a"], ["b"], domain="own")]
    proto.functions.append(helper.make_function("own", "Again", ["a"], ["b"], body, [helper.make_opsetid("own", 1)]))
    proto.opset_import.append(helper.make_opsetid("own", 1))


def unknown_operator(proto):
    proto.graph.node[0].op_type = "NoSuchOperator"


def wrong_shape(proto):
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7


def no_tensor(proto):
    proto.graph.input.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))


@pytest.mark.parametrize("spoil", [opset_9999, two_initializers, recursive_function, unknown_operator, wrong_shape, no_tensor])
def test_malformed_model_is_refused(tmp_path, spoil):
    """What ONNX Runtime or the checker alone would let pass is refused with one message."""
    proto = model()
    spoil(proto)
    with pytest.raises(ArtifactError, match="E424"):
        open_onnx(write(tmp_path, proto))
