"""Float32 ONNX files by other exporters, written in half precision and measured against themselves in float64."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from exporter.artifacts import OnnxModel, Outcome, ParityEvidence
from exporter.config import Config, InputConfig, load_config
from exporter.errors import ArtifactError, ConfigError, ExportError
from exporter.onnx_export import HalvedOnnx, load_onnx, read_onnx
from exporter.onnx_precision import as_asked, check_conversion, convert_file, feeds_of
from exporter.workspace import Workspace

NEWEST_OF_TORCHSCRIPT = 17


class Net(nn.Module):
    """Convolutions, a norm that is folded or kept, a layer norm, a softmax and a mean: half of it islands."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.tokens, self.head = nn.LayerNorm(8), nn.Linear(8, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.norm(self.stem(image)))
        x = torch.relu(self.deep(x)).flatten(2).transpose(1, 2)
        x = self.tokens(x)
        x = torch.softmax(x @ x.transpose(1, 2), -1) @ x
        logits: Tensor = self.head(x.mean(1))
        return logits


def _net() -> Net:
    generator = torch.Generator().manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim > 1 else 1.0))
        net.norm.running_var.copy_(torch.rand(8, generator=generator) + 0.5)
    return net


IMAGES = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)


def _export(path: Path, **settings: object) -> Path:
    """Export with torch's own exporter; what it says of itself is not our matter."""
    usual: dict[str, object] = {"input_names": ["image"], "output_names": ["logits"]}
    if settings.get("dynamo"):
        usual |= {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "verbose": False}
    else:
        usual |= {"dynamic_axes": {"image": {0: "batch"}, "logits": {0: "batch"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(_net(), (torch.from_numpy(IMAGES),), str(path), **{**usual, **settings})
    return path


def _torchscript(path: Path, opset: int = NEWEST_OF_TORCHSCRIPT) -> Path:
    return _export(path, dynamo=False, opset_version=opset, training=torch.onnx.TrainingMode.PRESERVE, keep_initializers_as_inputs=opset == 9)


def _config(**onnx_settings: object) -> Config:
    flags = {"latency": {"threads": 1}, "onnx": {"precision": "float16", **onnx_settings}, "samples": {"random": 4}, "parity": {"batches": [2]}}
    return load_config(None, base=Path(), environment={}, flags=flags)


def _silent(_what: str, _done: int, _total: int) -> bool:
    return True


def _converted(path: Path, output: Path | None = None, **settings: object) -> tuple[HalvedOnnx, ParityEvidence]:
    """Return the converted file and the numbers of its check, which passes."""
    config = _config(**settings)
    given = read_onnx(path)
    before = path.read_bytes()
    feeds = feeds_of(given.model, (), config, check=True)
    done = convert_file(given, output or path.with_name("half.onnx"), config, feeds)
    verdict, *ranges = check_conversion(given, done, feeds, config, _silent)
    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert [found.check for found in ranges] == (["range"] if done.written.precision == "float16" else [])
    assert path.read_bytes() == before
    assert isinstance(verdict.evidence, ParityEvidence)
    _require_typed(done.written)
    return done, verdict.evidence


def _require_typed(model: OnnxModel) -> None:
    onnx.checker.check_model(str(model.path), full_check=True)
    onnx.shape_inference.infer_shapes(onnx.load(model.path), check_type=True, strict_mode=True, data_prop=True)
    assert {spec.dtype for spec in (*model.inputs, *model.outputs)} == {"float32"}


EXPORTERS: dict[str, Callable[[Path], Path]] = {
    "dynamo, raw": lambda path: _export(path, dynamo=True, optimize=False),
    "dynamo, optimised": lambda path: _export(path, dynamo=True, optimize=True),
    "TorchScript": lambda path: _export(path, dynamo=False),
}


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_files_of_torchs_exporters(exporter: str, precision: str, tmp_path: Path) -> None:
    """Float32 outside, islands inside, most of the weights in half; as near to the file in float64 as its own rounding leaves it."""
    done, evidence = _converted(EXPORTERS[exporter](tmp_path / "net.onnx"), precision=precision)
    weights = {tensor.name: tensor.data_type for tensor in onnx.load(done.written.path).graph.initializer if len(tensor.dims) == 4}
    assert set(weights.values()) == {TensorProto.FLOAT16 if precision == "float16" else TensorProto.BFLOAT16}
    assert evidence.precision == done.written.precision == precision
    assert evidence.reference == "ONNX float64 on the CPU, unfused"
    islands = json.loads(done.written.metadata["exporter.float32"])
    assert {"softmax", "normalisation"} <= set(islands.values())
    assert evidence.outputs[0].own_error > 1e-5, "the own error is that of half precision"


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
def test_files_of_older_opsets_keep_theirs_in_float16(opset: int, tmp_path: Path) -> None:
    """What the TorchScript exporter writes; opset 9 with its weights among the inputs."""
    done, _ = _converted(_torchscript(tmp_path / "net.onnx", opset))
    assert done.written.opset == opset
    assert [spec.name for spec in done.written.inputs] == ["image"]


def test_an_older_opset_is_raised_for_bfloat16(tmp_path: Path) -> None:
    """Convolutions take bfloat16 from opset 22 on; the lineage says how far the raised file is from the given one."""
    done, _ = _converted(_torchscript(tmp_path / "net.onnx", 13), precision="bfloat16")
    assert done.written.opset == 22
    assert done.written.provenance.lineage["raised_from_opset"] == "13"
    assert float(done.written.provenance.lineage["departure_from_opset_13"]) < 1e-5
    assert {path.name for path in tmp_path.iterdir()} == {"net.onnx", "half.onnx", "half.onnx.json"}


def test_a_raised_file_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of both opsets can fail: here the converter's result has another weight."""
    path = _torchscript(tmp_path / "net.onnx", 13)
    convert = onnx.version_converter.convert_version

    def convert_wrongly(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        raised = convert(model, opset)
        weight = next(tensor for tensor in raised.graph.initializer if len(tensor.dims) == 4)
        weight.CopyFrom(onnx.numpy_helper.from_array(1.01 * onnx.numpy_helper.to_array(weight), weight.name))
        return raised

    monkeypatch.setattr(onnx.version_converter, "convert_version", convert_wrongly)
    with pytest.raises(ExportError, match="E467") as caught:
        _converted(path, precision="bfloat16")
    assert "depart" in caught.value.facts["found"]
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_external_data_are_read_and_the_result_stands_alone(tmp_path: Path) -> None:
    """Weights beside the file: the conversion is one file, in another folder, and the given files are as they were."""
    folder = tmp_path / "given"
    folder.mkdir()
    outside = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save(onnx.load(_torchscript(tmp_path / "plain.onnx")), folder / "net.onnx", **outside)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(before) == {"net.onnx", "weights.bin"}
    output = tmp_path / "elsewhere" / "half.onnx"
    _converted(folder / "net.onnx", output)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert {file.name for file in output.parent.iterdir()} == {"half.onnx", "half.onnx.json"}


def _parsed(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def test_functions_are_inlined_and_branches_stay_float32(tmp_path: Path) -> None:
    """A function of the file becomes nodes in half precision; a branch keeps float32 and reads its values widened."""
    text = """<ir_version: 8, opset_import: ["": 17, "own": 1]>
    g (float[N,4] x, bool p) => (float[N,4] y)
    <float[4,4] w = {1.5,0,0,0, 0,1.1,0,0, 0,0,1.7,0, 0,0,0,0.3}>
    { a = own.twice (x, w)
      b = If (p) <then_branch = t () => (float[N,4] c) { c = Neg(a) }, else_branch = e () => (float[N,4] d) { d = Abs(a) }>
      y = MatMul(b, w) }
    <domain: "own", opset_import: ["": 17]> twice (v, w) => (u) { m = MatMul(v, w)  u = MatMul(m, w) }"""
    path = _parsed(tmp_path / "net.onnx", text)
    done = convert_file(read_onnx(path), tmp_path / "half.onnx", _config(precision="float16"), ())
    _require_half(done.written.path, {"MatMul": 3})
    assert not onnx.load(done.written.path).functions
    assert "subgraph" in json.loads(done.written.metadata["exporter.float32"]).values()


def _require_half(path: Path, expected: dict[str, int]) -> None:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    typed = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    dtypes = {value.name: value.type.tensor_type.elem_type for value in typed.graph.value_info}
    found = [node.op_type for node in typed.graph.node if node.op_type != "Cast" and dtypes.get(node.output[0]) == TensorProto.FLOAT16]
    assert {kind: found.count(kind) for kind in set(found)} == expected


def test_a_wrong_conversion_fails_the_check(tmp_path: Path) -> None:
    """A weight that is 5 % off after the conversion is seen."""
    config = _config()
    given = read_onnx(_torchscript(tmp_path / "net.onnx"))
    feeds = feeds_of(given.model, (), config, check=True)
    done = convert_file(given, tmp_path / "half.onnx", config, feeds)
    model = onnx.load(done.written.path)
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    wrong = (onnx.numpy_helper.to_array(weight).astype(np.float32) * 1.05).astype(np.float16)
    weight.CopyFrom(onnx.numpy_helper.from_array(wrong, weight.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    broken = dataclasses.replace(done, written=dataclasses.replace(done.written, path=tmp_path / "wrong.onnx"))
    verdict, _ = check_conversion(given, broken, feeds, config, _silent)
    assert verdict.outcome is Outcome.FAIL


def test_values_beyond_float16_are_refused_with_their_islands(tmp_path: Path) -> None:
    """The nodes are named as configuration; with it the file is written."""
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,2] y)
    <float[2,2] large = {60000.0, 3.0, 5.0, 60000.0}, float[2,2] small = {0.001, 0.0, 0.0, 0.001}>
    { a = MatMul(x, large)  b = MatMul(a, small)  y = Sigmoid(b) }"""
    path = _parsed(tmp_path / "net.onnx", text)
    with pytest.raises(ExportError, match="E461") as caught:
        _converted(path)
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    islands = json.loads(caught.value.help.partition(" = ")[2])
    done, _ = _converted(path, float32=islands)
    assert done.written.path.exists()


def _own_error_of(tmp_path: Path, scale: float, opset: int = 17) -> ParityEvidence:
    """Return the numbers of a network of two products, the first ``scale`` times as large and the second as small; its range was not looked at."""
    first, second = np.random.default_rng(0).standard_normal((2, 64, 64)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "first"], ["a"]), helper.make_node("MatMul", ["a", "second"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 64]) for name in "xy"]
    constants = [onnx.numpy_helper.from_array(array, name) for array, name in ((first * scale, "first"), (second / scale, "second"))]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    path = tmp_path / f"{scale}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    config, given = _config(), read_onnx(path)
    feeds = tuple(named for named in feeds_of(given.model, (), config, check=True) if named.kind != "edge")
    done = convert_file(given, path.with_suffix(".half.onnx"), config, ())
    evidence = check_conversion(given, done, feeds, config, _silent)[0].evidence
    assert isinstance(evidence, ParityEvidence)
    return evidence


def test_an_overflow_does_not_hide_the_own_error(tmp_path: Path) -> None:
    """Values that pass float16 leave the file the own error that it has with smaller values; a remark says where it comes from."""
    small, large = _own_error_of(tmp_path, 1.0), _own_error_of(tmp_path, 2.0**13)
    assert small.outputs[0].outcome is Outcome.PASS
    assert not any("overflows" in remark for remark in small.remarks)
    assert "NaN or infinity" in large.outputs[0].reason
    assert "the unfused model overflows in float16: its own error there is an eighth of that in bfloat16" in large.remarks
    assert small.outputs[0].own_error / 2 < large.outputs[0].own_error < small.outputs[0].own_error * 2


def test_an_own_error_that_cannot_be_known_is_said(tmp_path: Path) -> None:
    """Before opset 13 ONNX has no bfloat16, so that what an overflow hides stays hidden, but not in silence."""
    remarks = _own_error_of(tmp_path, 2.0**13, opset=9).remarks
    assert any("overflows in float16 and does not run in bfloat16" in remark for remark in remarks)


REFUSED = {
    "half already": ("E462", """<ir_version: 8, opset_import: ["": 17]> g (float16[N,2] x) => (float16[N,2] y) { y = Relu(x) }"""),
    "partly half": (
        "E462",
        f"""<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,2] y)
        {{ a = Cast<to = {TensorProto.FLOAT16}>(x)  b = Relu(a)  y = Cast<to = 1>(b) }}""",
    ),
    "quantised": (
        "E463",
        """<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,2] y) <float s = {0.1}, int8 z = {0}>
        { a = QuantizeLinear(x, s, z)  y = DequantizeLinear(a, s, z) }""",
    ),
    "too old": ("E464", """<ir_version: 4, opset_import: ["": 8]> g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }"""),
    "unknown dtype": (
        "E465",
        """<ir_version: 8, opset_import: ["": 17, "own": 1]> g (float[N,2] x) => (float[N,2] y) { a = own.Strange(x)  y = Relu(a) }""",
    ),
    "islands alone": ("E466", """<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,2] y) { y = Softmax(x) }"""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused_by_name(case: str, tmp_path: Path) -> None:
    """Each with a code of its own, and nothing is written."""
    code, text = REFUSED[case]
    path = _parsed(tmp_path / "net.onnx", text)
    with pytest.raises((ArtifactError, ExportError)) as caught:
        convert_file(read_onnx(path), tmp_path / "half.onnx", _config(), ())
    assert caught.value.code == code
    assert caught.value.help
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_the_ranges_are_judged_on_recorded_samples(tmp_path: Path) -> None:
    """With samples the verdict passes, without them it is NOT_RUN; its numbers stand in the record beside the file."""
    path = _parsed(tmp_path / "net.onnx", """<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }""")
    np.savez(tmp_path / "samples.npz", x=np.full((4, 2), 3.0, np.float32))
    outcomes = {}
    for name, samples in (("recorded", tmp_path / "samples.npz"), ("random", None)):
        config = _config()
        config = config.replace(samples=config.samples.replace(path=samples))
        given = read_onnx(path)
        feeds = feeds_of(given.model, (), config, check=True)
        done = convert_file(given, tmp_path / f"{name}.onnx", config, feeds)
        outcomes[name] = check_conversion(given, done, feeds, config, _silent)[1].outcome
        assert load_onnx(done.written.path) == done.written
    assert outcomes == {"recorded": Outcome.PASS, "random": Outcome.NOT_RUN}


def test_the_file_itself_is_never_overwritten(tmp_path: Path) -> None:
    """Neither by its name nor through a link."""
    path = _torchscript(tmp_path / "net.onnx")
    (tmp_path / "link.onnx").symlink_to(path)
    for output in (path, tmp_path / "link.onnx"):
        with pytest.raises(ArtifactError, match="E468"):
            convert_file(read_onnx(path), output, _config(), ())


def test_the_lineage_goes_on(tmp_path: Path) -> None:
    """Digest of the given file, precision and islands are in the metadata, beside what stood there; a keyed record lies beside the file."""
    path = _torchscript(tmp_path / "net.onnx")
    proto = onnx.load(path)
    helper.set_model_props(proto, {"author": "someone"})
    path.write_bytes(proto.SerializeToString())
    done, _ = _converted(path)
    facts = done.written.metadata
    assert facts["author"] == "someone"
    assert facts["exporter.made_from.onnx"] == str(read_onnx(path).model.digest)
    assert facts["exporter.precision"] == "float16"
    loaded = load_onnx(done.written.path)
    assert loaded is not None
    assert loaded.provenance.lineage["precision_shares"] == facts["exporter.precision_shares"]


class TestForAnEngine:
    """What ``build-trt FILE.onnx`` makes of the precision that is asked for."""

    def _workspace(self, folder: Path, precision: str, *profiles: str) -> Workspace:
        config = _config(precision=precision)
        return Workspace(config.replace(tensorrt=config.tensorrt.replace(profiles=profiles)), folder=folder)

    def test_a_file_of_that_precision_is_taken_as_it_is(self, tmp_path: Path) -> None:
        """Float32 is the default and asks for nothing; on the command line it does, and a file in half precision is not that."""
        path = _torchscript(tmp_path / "net.onnx")
        plain = self._workspace(tmp_path / "work", "float32")
        assert as_asked(path, plain, insists=True).path == path
        half = as_asked(path, self._workspace(tmp_path / "work", "float16"), insists=False)
        assert half.path == tmp_path / "work" / "net.float16.onnx"
        assert as_asked(half.path, plain, insists=False).path == half.path
        with pytest.raises(ArtifactError, match="E462"):
            as_asked(half.path, plain, insists=True)
        with pytest.raises(ArtifactError, match="E462"):
            as_asked(half.path, self._workspace(tmp_path / "work", "bfloat16"), insists=False)

    def test_a_conversion_is_not_done_twice(self, tmp_path: Path) -> None:
        """Nor is a file taken that was made with other islands."""
        path = _torchscript(tmp_path / "net.onnx")
        workspace = self._workspace(tmp_path / "work", "float16")
        half = as_asked(path, workspace, insists=True)
        first = half.path.stat().st_mtime_ns
        assert as_asked(path, workspace, insists=True) == half
        assert half.path.stat().st_mtime_ns == first
        onnx_config = workspace.config.onnx.replace(float32=("*Conv*",))
        other = Workspace(workspace.config.replace(onnx=onnx_config), folder=workspace.folder)
        assert "asked for" in as_asked(path, other, insists=True).metadata["exporter.float32"]

    def test_the_profiles_say_what_the_file_does_not(self, tmp_path: Path) -> None:
        """An axis of unknown size needs a profile, or samples, before its values can be measured."""
        text = """<ir_version: 8, opset_import: ["": 17]> g (float[N,M] x) => (float[N,M] y) <float w = {0.5}> { y = Mul(x, w) }"""
        path = _parsed(tmp_path / "net.onnx", text)
        with pytest.raises(ConfigError, match="E474"):
            as_asked(path, self._workspace(tmp_path / "work", "float16"), insists=True)
        half = as_asked(path, self._workspace(tmp_path / "work", "float16", "x:1x4,2x4,4x8"), insists=True)
        assert half.precision == "float16"


def test_given_shapes_are_fed(tmp_path: Path) -> None:
    """``--input`` says a size that the file does not."""
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N,M] x) => (float[N,M] y) <float w = {0.5}> { y = Mul(x, w) }"""
    model = read_onnx(_parsed(tmp_path / "net.onnx", text)).model
    feeds = feeds_of(model, (InputConfig(name="x", shape=(2, 5)),), _config(), check=False)
    assert feeds[0].feed["x"].shape[1:] == (5,)
