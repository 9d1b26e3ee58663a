"""``exporter fuse-bn MODEL.onnx``, as a user runs it in a folder with nothing else in it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.cli.app import main

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]


def _network(path: Path, *, opset: int = 13, last: str = "Relu", domain: str = "", image: tuple[int | str, ...] = ("batch", 3, 8, 8)) -> Path:
    """Write two convolutions with their norms, a norm between two ReLUs, and one last operator."""
    rng = np.random.default_rng(0)
    constants = {"conv1.w": rng.standard_normal((4, 3, 3, 3)), "conv2.w": rng.standard_normal((4, 4, 1, 1))}
    for number in range(3):
        constants |= {f"{name}{number}": rng.uniform(0.5, 2, 4) for name in ("scale", "bias", "mean", "var")}

    def norm(number: int, read: str) -> onnx.NodeProto:
        parts = [f"{name}{number}" for name in ("scale", "bias", "mean", "var")]
        return helper.make_node("BatchNormalization", [read, *parts], [f"norm{number}"], name=f"norm{number}")

    nodes = [
        helper.make_node("Conv", ["image", "conv1.w"], ["a"], name="conv1"),
        norm(0, "a"),
        helper.make_node("Relu", ["norm0"], ["r0"]),
        helper.make_node("Conv", ["r0", "conv2.w"], ["c"], name="conv2"),
        norm(1, "c"),
        helper.make_node("Relu", ["norm1"], ["r1"]),
        norm(2, "r1"),
        helper.make_node(last, ["norm2"], ["y"], name="last", domain=domain),
    ]
    outputs = ("batch", 4, *(size - 2 if isinstance(size, int) else f"{size}_out" for size in image[2:]))
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("image", image), ("y", outputs))]
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()]
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    inputs = info[:1] + [helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims) for tensor in tensors] * (opset < 9)
    graph = helper.make_graph(nodes, "g", inputs, info[1:], tensors)
    path.write_bytes(helper.make_model(graph, opset_imports=imports, ir_version=3 if opset < 9 else 8).SerializeToString())
    return path


def _run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["fuse-bn", *arguments])
    shown = capsys.readouterr()
    return int(caught.value.code or 0), shown.out, shown.err


def test_a_file_is_folded_and_checked(run_cli: RunCli, tmp_path: Path) -> None:
    """The screen has what was folded, what was kept and why, the verdict, and where the result is; nothing else is left behind."""
    _network(tmp_path / "net.onnx")
    done = run_cli("fuse-bn", "net.onnx", "-o", "out/fused.onnx", "--check", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("folded 2 of 3 BatchNorm   Conv+bn 2")
    assert lines[0].endswith("ops 8 → 6")
    assert lines[1].startswith("cost ")
    assert lines[2].startswith("kept   1   norm2   not preceded by a linear operator")
    assert lines[3].startswith("parity  ✓ PASS   onnx-fused: y  rel L2")
    assert lines[-2].startswith("structure ✓ PASS   onnx-fused: 1 BatchNorm left, as planned")
    assert lines[-1] == "→ out/fused.onnx"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"fused.onnx", "fused.onnx.json"}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"net.onnx"}


def test_json_has_the_same_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``--json`` is the object that the command gives for torch models too; by default the result lies here, under the file's stem."""
    monkeypatch.chdir(tmp_path)
    _network(Path("net.onnx"))
    status, out, _ = _run(["net.onnx", "--check", "--json", "--keep", "norm1"], capsys)
    result = json.loads(out)
    assert (status, result["outcome"], result["num_batch_norms"]) == (0, "PASS", 3)
    assert [fold["batch_norm"] for fold in result["folded"]] == ["norm0"]
    assert {refusal["batch_norm"]: refusal["reason"] for refusal in result["refusals"]} == {
        "norm1": "excluded by the configuration",
        "norm2": "not preceded by a linear operator",
    }
    assert result["path"] == "net.fused.onnx"
    assert result["verdicts"][0]["evidence"]["reference"] == "ONNX float64 on the CPU, unfused"


def test_opset_8_is_folded_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where initializers had to be inputs too, they are no inputs of the check."""
    monkeypatch.chdir(tmp_path)
    _network(Path("net.onnx"), opset=8)
    status, out, err = _run(["net.onnx", "--check"], capsys)
    assert status == 0, out + err
    assert out.startswith("folded 2 of 3 BatchNorm")


def test_shapes_are_given_where_the_file_leaves_them_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a size the check does not begin, and says which option gives it; nothing is written. With it, the check passes."""
    monkeypatch.chdir(tmp_path)
    _network(Path("net.onnx"), image=("batch", 3, "height", "width"))
    status, _, err = _run(["net.onnx", "--check"], capsys)
    assert status == 2
    assert "E474" in err
    assert "--input image:1x3x224x224" in err
    assert not Path("net.fused.onnx").exists()
    assert _run(["net.onnx", "--check", "--input", "image:2x3x9x7"], capsys)[0] == 0


def test_an_operator_that_no_runtime_has_ends_the_check_with_status_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What can be folded is folded and listed; the check names the operator that cannot be run."""
    monkeypatch.chdir(tmp_path)
    _network(Path("net.onnx"), last="Magic", domain="com.example")
    status, out, err = _run(["net.onnx", "--check"], capsys)
    assert status == 5
    assert out.startswith("folded 2 of 3 BatchNorm")
    assert "com.example" in err
    assert "Magic" in err
    assert _run(["net.onnx"], capsys)[0] == 0


def test_a_fold_that_is_disturbed_is_status_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong weight in the folded file fails the check."""
    import exporter.graph
    from exporter.artifacts import FoldedOnnx

    fold_onnx = exporter.graph.fold_onnx

    def disturbed(*arguments: object, **settings: object) -> FoldedOnnx:
        folded = fold_onnx(*arguments, **settings)
        tensor = next(tensor for tensor in folded.model.graph.initializer if len(tensor.dims) == 4)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
        return folded

    monkeypatch.setattr(exporter.graph, "fold_onnx", disturbed)
    monkeypatch.chdir(tmp_path)
    _network(Path("net.onnx"))
    status, out, _ = _run(["net.onnx", "--check"], capsys)
    assert status == 3
    assert "parity  ✗ FAIL   onnx-fused: y" in out
    assert "it would pass from rtol" in out


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        pytest.param(["net.onnx", "width=8"], 2, "KEY=VALUE", id="arguments"),
        pytest.param(["net.onnx", "--checkpoint", "last.pt"], 2, "--checkpoint", id="a checkpoint"),
        pytest.param(["net.onnx", "--ema", "model_ema"], 2, "--ema", id="an average"),
        pytest.param(["net.onnx", "--dtype", "float16", "--bn-stats", "raw"], 2, "--dtype, --bn-stats", id="options of weights"),
        pytest.param(["net.onnx", "--input", "image:2x3x8x8"], 2, "--check", id="inputs that nobody feeds"),
        pytest.param(["net.onnx", "--check", "--input", "picture:2x3x8x8"], 2, "E473", id="another input"),
        pytest.param(["net.onnx", "-o", "net.onnx"], 4, "E472", id="onto itself"),
        pytest.param(["none.onnx"], 4, "none.onnx", id="no such file"),
        pytest.param(["folder.onnx"], 4, "Is a directory", id="a folder"),
        pytest.param(["picture.onnx"], 4, "E421", id="a picture"),
        pytest.param(["short.onnx"], 4, "E421", id="cut off"),
        pytest.param(["empty.onnx"], 4, "0 bytes", id="empty"),
        pytest.param(["opset5.onnx"], 5, "opset 5", id="older than BatchNormalization as it is now"),
        pytest.param(["strange.onnx"], 4, "com.example", id="a domain that is not imported"),
    ],
)
def test_a_mistake_has_its_status_and_writes_nothing(
    arguments: list[str], status: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the culprit; the folder holds what it held."""
    monkeypatch.chdir(tmp_path)
    content = _network(Path("net.onnx")).read_bytes()
    Path("folder.onnx").mkdir()
    Path("picture.onnx").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    Path("short.onnx").write_bytes(content[: len(content) // 2])
    Path("empty.onnx").touch()
    proto = onnx.load_from_string(content)
    proto.graph.node[-1].domain = "com.example"
    Path("strange.onnx").write_bytes(proto.SerializeToString())
    old = onnx.parser.parse_model('<ir_version: 3, opset_import: ["": 5]> g (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }')
    Path("opset5.onnx").write_bytes(old.SerializeToString())
    before = {path.name for path in Path().iterdir()}
    found, out, err = _run(arguments, capsys)
    assert found == status, err
    assert text in err
    assert out == ""
    assert {path.name for path in Path().iterdir()} == before


def test_explain_draws_what_stands_around(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--explain`` draws the norm that was kept between its culprits, from the file alone; with a pattern, what took a folded one."""
    path, output = _network(tmp_path / "net.onnx"), tmp_path / "out.onnx"
    status, out, _ = _run([str(path), "-o", str(output), "--explain"], capsys)
    drawn = [line.split()[:2] for line in out.partition("norm2   kept")[2].splitlines() if line.startswith("    ")]
    assert status == 0
    assert [line for line in drawn if line[0] in {"✗", "■"}] == [["✗", "r1"], ["■", "norm2"], ["✗", "last"]]
    status, out, _ = _run([str(path), "-o", str(output), "-q", "--json", "--explain=norm1"], capsys)
    (item,) = json.loads(out)["explanations"]
    assert [one["module"] for one in item["neighbours"] if one["takes_it"]] == ["conv2"]
    status, _, err = _run([str(path), "-o", str(output), "--explain=norm7"], capsys)
    assert status == 2
    assert "norm1" in err
