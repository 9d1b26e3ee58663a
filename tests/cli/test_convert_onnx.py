"""``exporter export-onnx FILE.onnx --precision``, as a user runs it in a folder with nothing else in it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx.parser
import pytest

from exporter.cli.app import main

NETWORK = """<ir_version: 8, opset_import: ["": 13]> g (float[batch,4] x) => (float[batch,4] y)
<float[4,4] w = {1.5, 0, 0, 0.1, 0, 1.1, 0, 0, 0, 0, 1.7, 0, 0, 0.2, 0, 0.3}>
{ a = MatMul(x, w)  b = Softmax(a)  y = MatMul(b, w) }"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A float32 file in the current folder."""
    monkeypatch.chdir(tmp_path)
    onnx.save(onnx.parser.parse_model(NETWORK), "net.onnx")
    return Path("net.onnx")


def _run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["export-onnx", *arguments])
    shown = capsys.readouterr()
    return int(caught.value.code or 0), shown.out, shown.err


def test_a_file_is_converted_and_checked(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The screen has the verdict, the file and its shares; the JSON has the same, and the given file is as it was."""
    before = net.read_bytes()
    status, out, _ = _run([str(net), "--precision", "float16", "--check"], capsys)
    assert status == 0
    assert "PASS   onnx-float16" in out
    assert "onnx → net.float16.onnx   opset 13" in out
    assert "float16 67 %, float32 33 %" in out
    status, out, _ = _run([str(net), "--precision", "bfloat16", "--check", "--json", "-o", "b.onnx"], capsys)
    result = json.loads(out)
    assert (status, result["outcome"], result["precision"], result["opset"]) == (0, "PASS", "bfloat16", 22)
    assert net.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        pytest.param([], 2, "--precision", id="converted to nothing"),
        pytest.param(["--precision", "float16", "--opset", "17"], 2, "--opset", id="an option for models"),
        pytest.param(["--precision", "float16", "-o", "net.onnx"], 4, "E468", id="onto itself"),
        pytest.param(["--precision", "float16", "--float32", "hed"], 2, "E456", id="misspelt pattern"),
        pytest.param(["--precision", "float16", "--float32", "*"], 5, "E466", id="nothing left"),
        pytest.param(["--precision", "float16", "--input", "image:1x4"], 2, "E473", id="an input of another model"),
    ],
)
def test_a_mistake_has_its_status_and_writes_nothing(
    net: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, text: str
) -> None:
    """As with every command: the status, a message that names the culprit, and no file."""
    found, out, err = _run([str(net), *arguments], capsys)
    assert found == status, err
    assert text in err
    assert out == ""
    assert [path.name for path in Path().iterdir()] == ["net.onnx"]


def test_a_file_in_half_precision_is_not_converted_again(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither to the other half precision nor to the same one."""
    assert _run([str(net), "--precision", "float16"], capsys)[0] == 0
    for precision in ("bfloat16", "float16"):
        status, _, err = _run(["net.float16.onnx", "--precision", precision], capsys)
        assert (status, "E462" in err) == (4, True)
