"""ONNX files by other exporters: folded, written whole, and measured against themselves in float64."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from exporter.artifacts import Outcome, ParityEvidence
from exporter.config import Config, InputConfig, load_config
from exporter.errors import ArtifactError, ConfigError, ModelNotSupported, SampleError
from exporter.onnx_export import check_folded_structure, load_onnx, open_onnx, read_onnx
from exporter.onnx_folding import OnnxFold, check_fold, feeds_for, fold_file

NUM_BATCH_NORMS = 7
KEPT = 1
NEWEST_OF_TORCHSCRIPT = 17


class Net(nn.Module):
    """Norms behind convolutions of each kind, in a sum, behind a linear layer, and one between two ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep, self.deep_norm = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), nn.BatchNorm2d(8)
        self.left, self.left_norm = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.right, self.right_norm = nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.BatchNorm2d(8)
        self.up, self.up_norm = nn.ConvTranspose2d(8, 4, 2, stride=2, bias=False), nn.BatchNorm2d(4)
        self.kept_norm = nn.BatchNorm2d(4)
        self.head, self.head_norm = nn.Linear(4, 10), nn.BatchNorm1d(10)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(image)))
        x = nn.functional.hardswish(self.deep_norm(self.deep(x)))
        x = torch.relu(self.left_norm(self.left(x)) + self.right_norm(self.right(x)))
        x = torch.relu(self.up_norm(self.up(x)))
        x = torch.relu(self.kept_norm(x)).mean((2, 3))
        logits: Tensor = self.head_norm(self.head(x))
        return logits


def _net() -> Net:
    generator = torch.Generator().manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim > 1 else 1.0))
        for norm in net.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator))
                norm.running_var.copy_(torch.rand(norm.num_features, generator=generator) * 3 + 0.1)
    return net


IMAGES = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)


def _export(path: Path, *, net: nn.Module | None = None, images: np.ndarray = IMAGES, **settings: object) -> Path:
    """Export with torch's own exporter; what it says of itself is not our matter."""
    usual = {"input_names": ["image"], "output_names": ["logits"]}
    if settings.get("dynamo"):
        usual |= {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "verbose": False}
    else:
        usual |= {"dynamic_axes": {"image": {0: "batch"}, "logits": {0: "batch"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net or _net(), (torch.from_numpy(images[:2]),), str(path), **{**usual, **settings})
    return path


def _torchscript(path: Path, opset: int = NEWEST_OF_TORCHSCRIPT) -> Path:
    return _export(path, dynamo=False, opset_version=opset, training=torch.onnx.TrainingMode.PRESERVE)


def _silent(_what: str, _done: int, _total: int) -> bool:
    return True


def _config(**flags: dict[str, object]) -> Config:
    return load_config(None, base=Path(), environment={}, flags={"latency": {"threads": 1}, **flags})


def _folded(path: Path, **flags: dict[str, object]) -> OnnxFold:
    return fold_file(read_onnx(path), path.with_name(f"{path.stem}.fused.onnx"), _config(**flags))


def _checked(fold: OnnxFold, given: tuple[InputConfig, ...] = ()) -> ParityEvidence:
    config = _config()
    verdict, structure = check_fold(fold, feeds_for(fold.given.model, given, config), config, _silent)
    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert structure.outcome is Outcome.PASS, structure.reason
    assert isinstance(verdict.evidence, ParityEvidence)
    return verdict.evidence


def _error_against_torch(path: Path) -> float:
    """Return how far the folded file in ONNX Runtime is from the network in torch in float64: nothing of ours is between them."""
    with torch.inference_mode():
        expected = _net().double()(torch.from_numpy(IMAGES).double()).numpy()
    found = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"image": IMAGES})[0]
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _onnxruntime_takes(path: Path) -> bool:
    try:
        ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except ort.capi.onnxruntime_pybind11_state.Fail:
        return False
    return True


def _num_norms(path: Path) -> int:
    return sum(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)


EXPORTERS: dict[str, Callable[[Path], Path]] = {
    "dynamo, raw": lambda path: _export(path, dynamo=True, optimize=False),
    "dynamo, optimised": lambda path: _export(path, dynamo=True, optimize=True),
    "TorchScript": lambda path: _export(path, dynamo=False),
    "TorchScript, norms kept": _torchscript,
}


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_files_of_torchs_exporters(exporter: str, tmp_path: Path) -> None:
    """Every BatchNorm but the one between two ReLUs is folded, by the exporter or by us; the check passes, and torch agrees."""
    path = EXPORTERS[exporter](tmp_path / "net.onnx")
    before = _num_norms(path)
    fold = _folded(path)
    evidence = _checked(fold)
    assert fold.folded.num_batch_norms == before
    assert len(fold.folded.refusals) == _num_norms(fold.written.path) == KEPT
    assert len(fold.folded.folded) == before - KEPT
    assert exporter not in {"dynamo, raw", "TorchScript, norms kept"} or before == NUM_BATCH_NORMS
    assert evidence.reference == "ONNX float64 on the CPU, unfused"
    assert _error_against_torch(fold.written.path) < 3e-6


@pytest.mark.parametrize("opset", range(9, NEWEST_OF_TORCHSCRIPT + 1))
def test_files_of_every_opset_of_the_torchscript_exporter(opset: int, tmp_path: Path) -> None:
    """Opsets 9 to 17, as the exporter writes them."""
    fold = _folded(_torchscript(tmp_path / "net.onnx", opset))
    _checked(fold)
    assert (fold.written.opset, len(fold.folded.folded), fold.written.num_batch_norms) == (opset, NUM_BATCH_NORMS - KEPT, KEPT)
    assert _error_against_torch(fold.written.path) < 3e-6


@pytest.mark.parametrize("opset", range(NEWEST_OF_TORCHSCRIPT + 1, onnx.defs.onnx_opset_version() + 1))
def test_files_of_newer_opsets_by_onnxs_own_converter(opset: int, tmp_path: Path) -> None:
    """The newer ones, as ONNX's version converter makes them, as far as ONNX Runtime takes them."""
    path = _torchscript(tmp_path / "net.onnx")
    path.write_bytes(onnx.version_converter.convert_version(onnx.load(path), opset).SerializeToString())
    fold = _folded(path)
    assert (fold.written.opset, len(fold.folded.folded), fold.written.num_batch_norms) == (opset, NUM_BATCH_NORMS - KEPT, KEPT)
    if _onnxruntime_takes(path):
        assert not any("reference" in remark for remark in _checked(fold).remarks)
        return
    assert opset > 20, "ONNX Runtime has taken these for years"
    with pytest.raises(ModelNotSupported, match="E623"):
        _checked(fold)


def test_external_data_are_read_and_the_result_stands_alone(tmp_path: Path) -> None:
    """Weights beside the file: the fold is one file, in another folder, and the given files are as they were."""
    path = _torchscript(tmp_path / "plain.onnx")
    folder = tmp_path / "given"
    folder.mkdir()
    outside = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save(onnx.load(path), folder / "net.onnx", **outside)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(before) == {"net.onnx", "weights.bin"}
    output = tmp_path / "elsewhere" / "fused.onnx"
    fold = fold_file(read_onnx(folder / "net.onnx"), output, _config())
    _checked(fold)
    assert _error_against_torch(output) < 3e-6
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert {file.name for file in output.parent.iterdir()} == {"fused.onnx", "fused.onnx.json"}


def test_external_data_used_over_and_over_are_refused(tmp_path: Path) -> None:
    """A small file that stands for gigabytes of weights is not read to the end."""
    (tmp_path / "w.bin").write_bytes(bytes(4 << 10))
    tensors = []
    for number in range(64):
        tensor = TensorProto(name=f"w{number}", data_type=TensorProto.FLOAT, dims=[1 << 10], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="w.bin")
        tensors.append(tensor)
    nodes = [helper.make_node("Add", [f"v{n}" if n else "x", f"w{n}"], [f"v{n + 1}"]) for n in range(64)]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 1 << 10)) for name in ("x", "v64")]
    model = helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:], tensors), opset_imports=[helper.make_opsetid("", 17)])
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="E471"):
        _folded(tmp_path / "net.onnx")
    assert not (tmp_path / "net.fused.onnx").exists()


def test_half_precision_is_judged_in_half_precision(tmp_path: Path) -> None:
    """Weights in float16 stay in float16; the reference is the same file in float64, the tolerance that of float16."""
    path = _export(tmp_path / "net.onnx", net=_net().half(), images=IMAGES.astype(np.float16), dynamo=True, optimize=False)
    fold = _folded(path)
    evidence = _checked(fold)
    assert evidence.precision == "float16"
    assert fold.written.inputs[0].dtype == "float16"
    assert len(fold.folded.folded) == NUM_BATCH_NORMS - KEPT
    dtypes = {tensor.data_type for tensor in onnx.load(fold.written.path).graph.initializer if len(tensor.dims) == 4}
    assert dtypes == {TensorProto.FLOAT16}


def test_the_written_file_says_where_it_came_from(tmp_path: Path) -> None:
    """Digest of the given file, folds and refusals are in its metadata, beside what stood there; a keyed record lies beside it."""
    path = _torchscript(tmp_path / "net.onnx")
    proto = onnx.load(path)
    helper.set_model_props(proto, {"author": "someone"})
    path.write_bytes(proto.SerializeToString())
    fold = _folded(path)
    facts = fold.written.metadata
    assert facts["author"] == "someone"
    assert facts["exporter.made_from.onnx"] == str(fold.given.model.digest)
    assert (facts["exporter.batch_norms"], facts["exporter.folded"], facts["exporter.refused"]) == ("7", "6", "1")
    assert facts["exporter.refused_for"] == "not_linear 1"
    assert onnx.load(fold.written.path).producer_name == proto.producer_name
    loaded = load_onnx(fold.written.path)
    assert loaded is not None
    assert loaded.provenance.made_from == {"onnx": str(fold.given.model.digest)}


def test_norms_are_kept_on_request(tmp_path: Path) -> None:
    """``[fold] keep`` holds for files too."""
    fold = _folded(_torchscript(tmp_path / "net.onnx"), fold={"keep": ("*stem*",)})
    assert len(fold.folded.folded) == NUM_BATCH_NORMS - KEPT - 1
    assert any("stem" in refusal.batch_norm for refusal in fold.folded.refusals)


def test_a_wrong_fold_fails(tmp_path: Path) -> None:
    """One folded weight that is off by 1 % is found, with the tolerance that would have passed it."""
    fold = _folded(_torchscript(tmp_path / "net.onnx"))
    proto = onnx.load(fold.written.path)
    tensor = next(tensor for tensor in proto.graph.initializer if len(tensor.dims) == 4)
    weight = numpy_helper.to_array(tensor).copy()
    weight.flat[int(np.abs(weight).argmax())] *= 1.01
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    fold.written.path.write_bytes(proto.SerializeToString())
    config = _config()
    disturbed = dataclasses.replace(fold, written=open_onnx(fold.written.path))
    verdict, _ = check_fold(disturbed, feeds_for(fold.given.model, (), config), config, _silent)
    assert verdict.outcome is Outcome.FAIL
    assert "rtol" in verdict.reason


def _with_operator(path: Path, domain: str, op_type: str) -> Path:
    """Write a convolution, its BatchNorm and then one operator of somebody's own."""
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((4, 3, 3, 3)), **{name: rng.uniform(0.5, 2, 4) for name in ("s", "b", "m", "v")}}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"], name="norm"),
        helper.make_node(op_type, ["n"], ["y"], name="special", domain=domain),
    ]
    info = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 3, 8, 8)), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    info[1] = helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 4, 6, 6))
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()]
    imports = [helper.make_opsetid("", 13), helper.make_opsetid(domain, 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:], tensors), opset_imports=imports, ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def test_an_operator_of_the_runtime_alone_leaves_float32_and_says_so(tmp_path: Path) -> None:
    """What only ONNX Runtime knows is folded around; the reference is the runtime without optimisation, and the verdict names why."""
    fold = _folded(_with_operator(tmp_path / "net.onnx", "com.microsoft", "Gelu"))
    assert len(fold.folded.folded) == 1
    evidence = _checked(fold)
    assert evidence.reference == "ONNX Runtime float32 on the CPU, unfused"
    assert "com.microsoft::Gelu, node 'special'" in evidence.remarks[0]
    assert evidence.outputs[0].own_error > 0


@pytest.mark.parametrize("fault", ["a norm too many", "another operator", "another output", "more work"])
def test_a_structure_that_is_not_as_planned_fails(fault: str, tmp_path: Path) -> None:
    """A norm that came back, a kind of operator that was not there, an output of another name and FLOPs that grew are told apart."""
    path = _with_operator(tmp_path / "net.onnx", "com.microsoft", "Gelu")
    fold = _folded(path)
    config = _config()
    assert check_folded_structure(fold.given, fold.written, fold.folded, config.fold).outcome is Outcome.PASS
    proto = onnx.load(fold.written.path)
    folded = fold.folded
    if fault == "a norm too many":
        proto = onnx.load(path)
    elif fault == "another operator":
        proto.graph.node[-1].CopyFrom(helper.make_node("Tanh", list(proto.graph.node[-1].input), ["y"]))
    elif fault == "another output":
        proto.graph.node[-1].output[0] = proto.graph.output[0].name = "z"
    else:
        more = dataclasses.replace(folded.cost_before, flops=folded.cost_before.flops * 2)
        folded = dataclasses.replace(folded, cost_after=more)
    fold.written.path.write_bytes(proto.SerializeToString())
    verdict = check_folded_structure(fold.given, open_onnx(fold.written.path), folded, config.fold)
    words = {"a norm too many": "1 BatchNorms are left", "another operator": "Tanh", "another output": "'z'", "more work": "FLOPs"}
    assert verdict.outcome is Outcome.FAIL
    assert words[fault] in verdict.reason


def test_an_operator_that_nobody_knows_ends_the_check(tmp_path: Path) -> None:
    """The fold is there; the check says which operator cannot be run."""
    fold = _folded(_with_operator(tmp_path / "net.onnx", "com.example", "Magic"))
    assert len(fold.folded.folded) == 1
    assert fold.written.path.exists()
    config = _config()
    with pytest.raises(ModelNotSupported, match="E623") as caught:
        check_fold(fold, feeds_for(fold.given.model, (), config), config, _silent)
    assert "Magic" in caught.value.facts["found"]


def test_a_reference_that_is_wrong_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX's own evaluator mixes the batch's statistics in below opset 14. Used so, it is found out at that node, and not taken."""
    from exporter.runners.onnx_float64 import evaluating

    wrong = tuple(operator for operator in evaluating.OPERATORS if operator.__name__ != "BatchNormalization")
    monkeypatch.setattr(evaluating, "OPERATORS", wrong)
    fold = _folded(_torchscript(tmp_path / "net.onnx", 13))
    evidence = _checked(fold)
    assert evidence.reference == "ONNX Runtime float32 on the CPU, unfused"
    assert "BatchNormalization" in evidence.remarks[0]


def test_the_given_file_is_not_overwritten(tmp_path: Path) -> None:
    """Also not under another name."""
    path = _with_operator(tmp_path / "net.onnx", "com.microsoft", "Gelu")
    (tmp_path / "same.onnx").symlink_to(path)
    for output in (path, tmp_path / "same.onnx"):
        with pytest.raises(ArtifactError, match="E472"):
            fold_file(read_onnx(path), output, _config())


def _dynamic(path: Path, shape: tuple[int | str, ...], dtype: int = TensorProto.FLOAT) -> Path:
    info = [helper.make_tensor_value_info(name, dtype, shape) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", info[:1], info[1:])
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    return path


def test_feeds_have_the_shapes_that_are_given(tmp_path: Path) -> None:
    """A given shape is fed as it is, its first axis as the batch; without one, the fixed sizes and a free batch are."""
    model = open_onnx(_dynamic(tmp_path / "net.onnx", ("batch", 3, "height", "width")))
    feeds = feeds_for(model, (InputConfig(name="x", shape=(2, 3, 5, 7)),), _config())
    assert {array.shape for named in feeds for chunk in named.chunks() for array in chunk.values()} == {(2, 3, 5, 7)}
    free = feeds_for(open_onnx(_dynamic(tmp_path / "free.onnx", ("batch", 3))), (), _config())
    assert free[0].feed["x"].shape == (16, 3)


def test_an_unknown_size_has_to_be_given(tmp_path: Path) -> None:
    """No size is guessed; the message has the option, with the input's name."""
    model = open_onnx(_dynamic(tmp_path / "net.onnx", ("batch", 3, "height", "width")))
    with pytest.raises(ConfigError, match="E474") as caught:
        feeds_for(model, (), _config())
    assert "height, width" in caught.value.facts["unknown"]
    assert caught.value.help.startswith("--input x:1x3x224x224")


@pytest.mark.parametrize(
    "given",
    [
        pytest.param((InputConfig(name="y", shape=(2, 3)),), id="another name"),
        pytest.param((InputConfig(name="x", shape=(2, 4)),), id="another size"),
        pytest.param((InputConfig(name="x", shape=(2, 3, 1)),), id="another rank"),
        pytest.param((InputConfig(name="x", shape=(2, 3), dtype="float16"),), id="another dtype"),
        pytest.param((InputConfig(name="x", shape=(2, 3)), InputConfig(name="z", shape=(2, 3))), id="one too many"),
    ],
)
def test_given_inputs_have_to_fit(given: tuple[InputConfig, ...], tmp_path: Path) -> None:
    """Both sides are shown."""
    model = open_onnx(_dynamic(tmp_path / "net.onnx", ("batch", 3)))
    with pytest.raises(ConfigError, match="E473") as caught:
        feeds_for(model, given, _config())
    assert "x float32 [batch, 3]" in caught.value.facts["expected"]


@pytest.mark.parametrize(("shape", "dtype"), [((), TensorProto.FLOAT), (("batch", 3), TensorProto.STRING)])
def test_inputs_that_cannot_be_made_are_named(shape: tuple[int | str, ...], dtype: int, tmp_path: Path) -> None:
    """A single number, or text, is no row of numbers."""
    with pytest.raises(ModelNotSupported, match="E475"):
        feeds_for(open_onnx(_dynamic(tmp_path / "net.onnx", shape, dtype)), (), _config())


def test_samples_are_taken_by_name(tmp_path: Path) -> None:
    """Recorded samples are fed where their names are those of the inputs, and refused, not matched by position, where they are not."""
    np.savez(tmp_path / "samples.npz", x=np.ones((5, 3), np.float32))
    np.savez(tmp_path / "others.npz", image=np.ones((5, 3), np.float32))
    model = open_onnx(_dynamic(tmp_path / "net.onnx", ("batch", 3)))
    feeds = feeds_for(model, (), _config(samples={"path": tmp_path / "samples.npz"}))
    assert feeds[0].kind == "recorded"
    with pytest.raises(SampleError, match="E611") as caught:
        feeds_for(model, (), _config(samples={"path": tmp_path / "others.npz"}))
    assert "--input" in caught.value.help
