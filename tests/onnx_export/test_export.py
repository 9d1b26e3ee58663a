"""The exported model computes what the folded graph computes, says where it came from, and is the same bytes each time."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "graph"))

from networks import Sequence, folded, trained

from exporter.artifacts import Graph, Provenance
from exporter.config import FoldConfig, InputConfig, OnnxConfig
from exporter.errors import ExportError, InternalError
from exporter.graph import fold, trace
from exporter.onnx_export import export_onnx, load_onnx, lower_onnx, onnx_key, open_onnx
from exporter.records import record_path
from exporter.runners import RoundedOnnxRunner


def run(path: Path, *arrays: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: array for value, array in zip(session.get_inputs(), arrays, strict=True)})


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def bn(channels: int = 4, seed: int = 0) -> nn.Module:
    return trained(nn.BatchNorm2d(channels), seed=seed)


@pytest.fixture(scope="module")
def graph() -> Graph:
    """conv -> bn -> relu -> bn -> relu -> flatten -> linear: one BatchNorm is folded, one refused; with a lineage."""
    network = Sequence(
        conv=nn.Conv2d(3, 4, 3, bias=False),
        bn1=bn(4, 1),
        relu=nn.ReLU(),
        bn2=bn(4, 2),
        relu2=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        head=nn.Linear(4, 5),
    )
    traced = trace(network.eval(), (InputConfig(name="image", shape=(2, 3, 8, 8)),), outputs=("logits",))

    provenance = Provenance("graph", {"weights": "sha256:abc"}, {}, {}, {"checkpoint": "last.pt", "ema": "ema:model_ema"})
    return fold(traced, FoldConfig(), provenance=provenance)


def test_same_numbers_as_the_folded_graph(graph, tmp_path):
    """ONNX Runtime agrees with the folded and with the unfolded program, for batches that were not traced."""
    model = export_onnx(graph, tmp_path / "net.onnx", OnnxConfig(), key="k")
    for batch in (1, 5):
        x = noise(batch, 3, 8, 8)
        with torch.inference_mode():
            want = graph.unfused.module()(x)
        np.testing.assert_allclose(run(model.path, x.numpy())[0], want, rtol=1e-4, atol=1e-5)


def test_names_axes_and_counts(graph, tmp_path):
    """Inputs and outputs keep their names, the batch axis its name; only the refused BatchNorm is left."""
    model = export_onnx(graph, tmp_path / "net.onnx", OnnxConfig(opset=21), key="k")
    assert [(spec.name, spec.shape, spec.dtype) for spec in model.inputs] == [("image", ("batch", 3, 8, 8), "float32")]
    assert [(spec.name, spec.shape, spec.dtype) for spec in model.outputs] == [("logits", ("batch", 5), "float32")]
    assert (model.opset, model.num_batch_norms) == (21, 1)
    proto = onnx.load(model.path)
    kept = [node for node in proto.graph.node if node.op_type == "BatchNormalization"]
    assert [[entry.value for entry in node.metadata_props if entry.key == "exporter.module"] for node in kept] == [["bn2"]]


def test_batch_norm_that_the_user_keeps_is_not_folded_by_the_exporter(tmp_path):
    """``fold.keep`` holds to the end: torch's exporter does not fold what we were told to leave."""
    graph = folded(Sequence(conv=nn.Conv2d(3, 4, 3), bn=bn()), keep=("bn",))
    assert export_onnx(graph, tmp_path / "net.onnx", OnnxConfig(), key="k").num_batch_norms == 1


def test_lineage_is_in_the_file(graph, tmp_path):
    """Checkpoint, EMA choice, folds, refusals and versions are in the file's metadata, under keys that begin with ``exporter.``."""
    model = export_onnx(graph, tmp_path / "net.onnx", OnnxConfig(), key="k")
    facts = {entry.key: entry.value for entry in onnx.load(model.path).metadata_props}
    assert facts == dict(model.metadata)
    assert all(name.startswith("exporter.") for name in facts)
    assert facts["exporter.checkpoint"] == "last.pt"
    assert facts["exporter.ema"] == "ema:model_ema"
    assert facts["exporter.made_from.weights"] == "sha256:abc"
    assert facts["exporter.folded"] == "1"
    assert json.loads(facts["exporter.folds"]) == {"bn1": "conv"}
    assert json.loads(facts["exporter.refusals"]) == {"bn2": "NOT_LINEAR"}
    assert facts["exporter.version.torch"] == importlib.metadata.version("torch")


def test_no_path_of_this_machine_is_in_the_file(graph, tmp_path):
    """Traces of the exporter that name files of this machine are gone."""
    content = export_onnx(graph, tmp_path / "net.onnx", OnnxConfig(), key="k").path.read_bytes()
    assert b"site-packages" not in content
    assert str(Path(__file__).parent).encode() not in content


def test_same_graph_same_bytes(graph, tmp_path):
    """Two exports of one graph are equal, byte for byte."""
    first, second = (export_onnx(graph, tmp_path / name / "net.onnx", OnnxConfig(), key="k") for name in ("a", "b"))
    assert first.path.read_bytes() == second.path.read_bytes()


def test_nothing_on_stdout_or_stderr(graph, tmp_path, capfd):
    """The exporter's own progress and notes stay off the screen."""
    export_onnx(graph, tmp_path / "net.onnx", OnnxConfig(), key="k")
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize("opset", [17, 18, 20, 23, 25])
def test_every_opset_of_the_configuration(graph, tmp_path, opset):
    """Each opset that can be asked for is the one in the file, and the checker passes."""
    assert export_onnx(graph, tmp_path / "net.onnx", OnnxConfig(opset=opset), key="k").opset == opset


@pytest.mark.parametrize(("precision", "opset", "bound"), [("float16", 20, 3e-3), ("float16", 17, 3e-3), ("bfloat16", 22, 2e-2)])
def test_half_precision(graph, tmp_path, precision, opset, bound):
    """The network is in half precision, its interface in float32; the file says so, and with every value rounded the numbers agree."""
    model = export_onnx(graph, tmp_path / "net.onnx", OnnxConfig(opset=opset, precision=precision, float32=("head",)), key="k")
    assert (model.opset, model.precision, model.metadata["exporter.precision"]) == (opset, precision, precision)
    assert [spec.dtype for spec in (*model.inputs, *model.outputs)] == ["float32", "float32"]
    assert precision in model.provenance.lineage["precision_shares"]
    islands = json.loads(model.metadata["exporter.float32"])
    assert set(islands.values()) == {"asked for", "between islands", "normalisation", "reduction"}
    weights = {tensor.name: tensor.data_type for tensor in onnx.load(model.path).graph.initializer}
    assert {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}[precision] in weights.values()
    x = noise(5, 3, 8, 8)
    with torch.inference_mode():
        want = graph.unfused.module()(x).numpy()
    with RoundedOnnxRunner(model) as runner:
        got = runner.infer({"image": x.numpy()})["logits"]
    assert 1e-5 < np.linalg.norm(got - want) / np.linalg.norm(want) < bound


def test_float32_files_say_so(graph, tmp_path):
    """Without a precision everything is float32, and has no islands."""
    model = export_onnx(graph, tmp_path / "net.onnx", OnnxConfig(), key="k")
    assert (model.precision, model.metadata["exporter.precision_shares"]) == ("float32", "float32 100 %")
    assert "exporter.float32" not in model.metadata


@pytest.mark.parametrize("opset", [18, 21, 23])
def test_opset_17_computes_the_same(tmp_path, opset):
    """A network of operators that are newer than opset 17, or changed after it, agrees with its newer self within rounding."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.layer = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.LayerNorm(8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first, second = nn.functional.mish(self.norm(self.conv(nn.functional.pad(x, (1, 2, 0, 1), mode="reflect")))).chunk(2, dim=1)
            x = nn.functional.interpolate(torch.cat([nn.functional.gelu(first), second], 1), scale_factor=2.0, mode="bilinear")
            tokens = self.layer(x.flatten(2).transpose(1, 2))
            mixed = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
            return mixed.amax(1) - mixed.mean(1) + nn.functional.gelu(x.mean((2, 3)), approximate="tanh"), x.logsumexp(1)

    graph = folded(Network().eval(), (2, 3, 6, 6))
    newer = export_onnx(graph, tmp_path / "newer.onnx", OnnxConfig(opset=opset), key="k")
    older = lower_onnx(newer, tmp_path / "older.onnx", key="k")
    assert (older.opset, older.ir_version) == (17, 8)
    for got, want in zip(run(older.path, noise(5, 3, 6, 6).numpy()), run(newer.path, noise(5, 3, 6, 6).numpy()), strict=True):
        assert np.linalg.norm(got - want) <= 2e-6 * np.linalg.norm(want)
    types = {node.op_type for node in onnx.load(older.path).graph.node}
    assert not types & {"Attention", "Gelu", "GroupNormalization", "Mish"}
    assert "GlobalAveragePool" in types


def test_opset_17_has_passed_the_check_before_it_is_written(graph, tmp_path):
    """The check of an export in opset 17 sees the newer model and the older one; what it raises leaves no file."""
    seen = []

    def refuse(newer, older):
        seen.append((newer.opset, older.opset))
        raise ExportError("E453", "they disagree")

    with pytest.raises(ExportError, match="they disagree"):
        export_onnx(graph, tmp_path / "net.onnx", OnnxConfig(opset=17), key="k", check_lowered=refuse)
    assert (seen, list(tmp_path.iterdir())) == ([(18, 17)], [])


def test_fixed_batch(graph, tmp_path):
    """``dynamic_batch = false`` fixes the batch at 1, in and out."""
    model = export_onnx(graph, tmp_path / "net.onnx", OnnxConfig(dynamic_batch=False), key="k")
    assert (model.inputs[0].shape, model.outputs[0].shape) == ((1, 3, 8, 8), (1, 5))
    assert run(model.path, noise(1, 3, 8, 8).numpy())[0].shape == (1, 5)


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_convolution_without_bias_that_was_not_folded(tmp_path, spatial):
    """A bias that the exporter would compute at run time (for conv3d of a wrong shape) is not in the file."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial - 1](3, 4, 3, bias=False)
    shape = (2, 3, *[6] * spatial)
    graph = folded(Sequence(conv=conv, relu=nn.ReLU()), shape)
    model = export_onnx(graph, tmp_path / "net.onnx", OnnxConfig(), key="k")
    assert [len(node.input) for node in onnx.load(model.path).graph.node if node.op_type == "Conv"] == [2]
    with torch.inference_mode():
        np.testing.assert_allclose(run(model.path, noise(*shape).numpy())[0], graph.unfused.module()(noise(*shape)), rtol=1e-4, atol=1e-5)


def test_a_models_own_zero_bias_stays(tmp_path):
    """A bias that is a parameter of the model stays one, also where it is zero: new weights may be put in its place."""
    conv = nn.Conv2d(3, 4, 3)
    nn.init.zeros_(conv.bias)
    model = export_onnx(folded(Sequence(conv=conv)), tmp_path / "net.onnx", OnnxConfig(), key="k")
    assert "conv.bias" in {tensor.name for tensor in onnx.load(model.path).graph.initializer}


class StuckInTraining(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> StuckInTraining:
        return super().train(True)


@pytest.mark.parametrize("keep", [(), ("bn",)], ids=["refused", "kept on purpose"])
def test_training_mode_is_not_exported(tmp_path, keep):
    """A BatchNorm stuck in training mode would become another function in ONNX: refused by name, nothing is written."""
    graph = folded(Sequence(conv=nn.Conv2d(3, 4, 3), bn=trained(StuckInTraining(4))), keep=keep)
    with pytest.raises(ExportError, match="E401") as caught:
        export_onnx(graph, tmp_path / "net.onnx", OnnxConfig(), key="k")
    assert caught.value.facts["BatchNorm"] == "bn"
    assert list(tmp_path.iterdir()) == []


def test_batch_norm_without_running_statistics_is_exact(tmp_path):
    """One that keeps no statistics uses those of the batch by design; ONNX computes the same."""
    graph = folded(Sequence(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4, track_running_stats=False)))
    model = export_onnx(graph, tmp_path / "net.onnx", OnnxConfig(), key="k")
    x = noise(6, 3, 8, 8)
    with torch.inference_mode():
        np.testing.assert_allclose(run(model.path, x.numpy())[0], graph.unfused.module()(x), rtol=1e-4, atol=1e-5)


def test_operator_without_onnx_form(tmp_path):
    """An operator that ONNX does not have is an error of the model, which torch's words explain."""

    class Special(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(ExportError, match="E402") as caught:
        export_onnx(folded(Special()), tmp_path / "net.onnx", OnnxConfig(), key="k")
    assert "bessel_j0" in str(caught.value)


def test_a_batch_norm_that_came_back_is_noticed(graph, tmp_path):
    """If the file had a BatchNorm that the plan folded, it would not be written: the check can fail."""
    import dataclasses

    unfolded = dataclasses.replace(graph, folded_program=graph.unfused)
    with pytest.raises(InternalError, match="E491"):
        export_onnx(unfolded, tmp_path / "net.onnx", OnnxConfig(), key="k")
    assert list(tmp_path.iterdir()) == []


class Several(nn.Module):
    def forward(self, x: Tensor, length: Tensor) -> dict[str, Tensor]:
        return {"twice": x * 2, "same": x, "count": length + 1, "again": x * 2}


def test_several_inputs_and_outputs_keep_their_order(tmp_path):
    """Two inputs, four outputs, one of them an input: names and order are those of the graph."""
    traced = trace(Several().eval(), (InputConfig(name="x", shape=(2, 3)), InputConfig(name="length", shape=(2,), dtype="int64")))

    graph = fold(traced, FoldConfig(), provenance=Provenance("graph"))
    model = export_onnx(graph, tmp_path / "net.onnx", OnnxConfig(), key="k")
    assert [spec.name for spec in model.inputs] == ["x", "length"]
    assert [spec.name for spec in model.outputs] == ["twice", "same", "count", "again"]
    x = noise(3, 3).numpy()
    twice, same, count, again = run(model.path, x, np.array([1, 2, 3]))
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(twice, again)
    assert count.tolist() == [2, 3, 4]


class TestStored:
    """The file and its record."""

    def test_load_gives_what_export_gave(self, graph, tmp_path):
        """An up-to-date model is read back as it was."""
        model = export_onnx(graph, tmp_path / "net.onnx", OnnxConfig(), key="k")
        assert load_onnx(model.path, key="k") == model

    @pytest.mark.parametrize("damage", ["key", "file", "record"])
    def test_anything_else_is_made_again(self, graph, tmp_path, damage):
        """Another key, a changed byte or a missing record: None."""
        model = export_onnx(graph, tmp_path / "net.onnx", OnnxConfig(), key="k")
        if damage == "file":
            content = bytearray(model.path.read_bytes())
            content[-1] ^= 1
            model.path.write_bytes(content)
        elif damage == "record":
            record_path(model.path).unlink()
        assert load_onnx(model.path, key="other" if damage == "key" else "k") is None

    def test_key_follows_graph_and_configuration(self):
        """Equal inputs give equal keys, any other graph or setting another."""
        from exporter.artifacts import Digest

        keys = [onnx_key(Digest(name), OnnxConfig(opset=opset)) for name in "ab" for opset in (19, 20)]
        assert len(set(keys)) == 4
        assert onnx_key(Digest("a"), OnnxConfig(opset=19)) == keys[0]

    def test_weights_beyond_the_limit_go_beside_the_file(self, graph, tmp_path, monkeypatch):
        """Beyond protobuf's limit the weights lie in a file named by their digest; the model runs, reloads and opens as foreign."""
        from exporter.onnx_export import writing

        monkeypatch.setattr(writing, "INLINE_LIMIT_BYTES", 100)
        monkeypatch.setattr(writing, "_SMALL_BYTES", 64)
        model = export_onnx(graph, tmp_path / "net.onnx", OnnxConfig(), key="k")
        data = sorted(path for path in tmp_path.iterdir() if path.suffix == ".data")
        assert len(data) == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["net.onnx", "net.onnx.json", data[0].name])
        x = noise(3, 3, 8, 8)
        with torch.inference_mode():
            np.testing.assert_allclose(run(model.path, x.numpy())[0], graph.unfused.module()(x), rtol=1e-4, atol=1e-5)
        assert load_onnx(model.path, key="k") == model
        assert open_onnx(model.path).num_nodes == model.num_nodes
        content = bytearray(data[0].read_bytes())
        content[0] ^= 1
        data[0].write_bytes(content)
        assert load_onnx(model.path, key="k") is None


def test_a_convolution_of_three_axes_without_a_bias(tmp_path):
    """torch's raw export makes an invalid bias for it; folded with its BatchNorm, and alone, the file runs and gives the same numbers."""
    network = Sequence(conv=nn.Conv3d(3, 4, 3, bias=False), bn=trained(nn.BatchNorm3d(4)), relu=nn.ReLU(), last=nn.Conv3d(4, 2, 1, bias=False))
    graph = fold(trace(network.eval(), (InputConfig(name="x", shape=(2, 3, 5, 6, 7)),)), FoldConfig(), provenance=Provenance("graph"))
    model = export_onnx(graph, tmp_path / "net.onnx", OnnxConfig(), key="k")
    x = noise(3, 3, 5, 6, 7)
    with torch.inference_mode():
        np.testing.assert_allclose(run(model.path, x.numpy())[0], network(x), rtol=1e-4, atol=1e-5)
