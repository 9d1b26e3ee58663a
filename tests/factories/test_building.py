"""A factory is found, called and checked; whatever goes wrong names the file, the line and the near misses."""

from __future__ import annotations

import sys
import textwrap

import pytest
import torch
from torch import nn

from exporter.config import ModelConfig
from exporter.errors import ArtifactError, ConfigError, ExporterError, ExportError, MissingLibrary
from exporter.factories import build_model

NETWORK = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self, width=3):
            super().__init__()
            self.head = nn.Linear(width, 2)

        def forward(self, x):
            return self.head(x)

    def build(width=3):
        return Net(width)

    def build_other():
        return {"state": 1}

    def explode():
        raise RuntimeError("no such backbone")   # this line

    CONSTANT = 3
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with a model's code in ``net.py``."""
    (tmp_path / "net.py").write_text(textwrap.dedent(NETWORK))
    return tmp_path


def build(folder, factory: str, **arguments: object) -> nn.Module:
    return build_model(ModelConfig(factory=factory, arguments=arguments), base=folder)


def test_callable_in_a_file(folder):
    """``net.py:build`` relative to the base gives the network in eval mode, with the arguments."""
    network = build(folder, "net.py:build", width=7)
    assert isinstance(network, nn.Module)
    assert not network.training
    assert network.head.in_features == 7


def test_callable_in_a_package(folder):
    """``package.module:callable`` is imported from the base folder; a class works as well as a function."""
    (folder / "zoo").mkdir()
    (folder / "zoo" / "__init__.py").write_text("")
    (folder / "zoo" / "nets.py").write_text((folder / "net.py").read_text())
    assert type(build(folder, "zoo.nets:Net")).__name__ == "Net"


def test_imports_beside_the_file_leave_no_trace(folder, tmp_path_factory):
    """A file may import its neighbours; ``sys.path`` is as before, and a neighbour of the same name elsewhere is not mixed up."""
    other = tmp_path_factory.mktemp("other")
    for place, width in ((folder, 4), (other, 9)):
        (place / "net.py").write_text(textwrap.dedent(NETWORK))
        (place / "blocks_beside.py").write_text(f"WIDTH = {width}\n")
        (place / "main.py").write_text("from blocks_beside import WIDTH\nfrom net import Net\n\ndef build():\n    return Net(WIDTH)\n")
    path, modules = list(sys.path), set(sys.modules)
    assert [build(place, "main.py:build").head.in_features for place in (folder, other)] == [4, 9]
    assert sys.path == path
    assert not {"blocks_beside", "net", "main"} & (set(sys.modules) - modules)


def test_changed_file_is_read_again(folder):
    """The factory is what the file says now, not what an import remembered."""
    assert build(folder, "net.py:build").head.in_features == 3
    (folder / "net.py").write_text(textwrap.dedent(NETWORK).replace("width=3", "width=5"))
    assert build(folder, "net.py:build").head.in_features == 5


@pytest.mark.parametrize(
    ("factory", "kind", "code", "words"),
    [
        ("auto", ConfigError, "E302", "timm:NAME"),
        ("resnet18", ConfigError, "E301", "'resnet18'"),
        ("tim:resnet18", ConfigError, "E303", "tim"),
        ("what is this:x", ConfigError, "E301", "what is this"),
        ("missing.py:build", ConfigError, "E303", "missing.py"),
        ("missing.pt2", ConfigError, "E303", "missing.pt2"),
        ("no_such_package.nets:build", ConfigError, "E303", "no_such_package"),
        ("net.py:biuld", ConfigError, "E304", "did you mean build"),
        ("net.py:CONSTANT", ConfigError, "E304", "CONSTANT is a int"),
        ("net.py:build_other", ExportError, "E307", "builtins.dict"),
        ("net.py:explode", ExportError, "E306", "RuntimeError: no such backbone"),
    ],
)
def test_mistakes_name_what_and_where(folder, factory, kind, code, words):
    """Each mistake has its own code and shows what was looked for."""
    with pytest.raises(kind) as caught:
        build(folder, factory)
    assert caught.value.code == code
    assert words in str(caught.value)


def test_exception_of_a_factory_is_chained_with_its_line(folder):
    """The user's own exception is the cause, and its line is shown."""
    with pytest.raises(ExportError) as caught:
        build(folder, "net.py:explode")
    assert "net.py:" in caught.value.facts["line"]
    assert "# this line" in caught.value.facts["line"]
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("source", "words"), [("def broken(:\n", "SyntaxError"), ("import no_such_thing\n", "no_such_thing"), ("1 / 0\n", "ZeroDivisionError")]
)
def test_file_that_cannot_be_run(folder, source, words):
    """A syntax error, a missing import and an exception at import are told apart, with the line."""
    (folder / "broken.py").write_text(source)
    with pytest.raises(ExportError, match="E305") as caught:
        build(folder, "broken.py:build")
    assert words in caught.value.facts["raised"]
    assert "broken.py:1" in caught.value.facts["line"]


def test_wrong_argument_is_the_factorys_exception(folder):
    """An argument that the factory does not take is shown with the arguments that were given."""
    with pytest.raises(ExportError, match="E306") as caught:
        build(folder, "net.py:build", depth=3)
    assert caught.value.facts["arguments"] == "depth=3"


def test_prints_of_a_factory_do_not_reach_stdout(folder, capsys):
    """Standard output belongs to the result; what a factory prints goes to standard error."""
    (folder / "loud.py").write_text("print('importing')\nfrom net import build as quiet\n\ndef build():\n    print('building')\n    return quiet()\n")
    build(folder, "loud.py:build")
    out, err = capsys.readouterr()
    assert out == ""
    assert "importing" in err
    assert "building" in err


@pytest.mark.parametrize("factory", ["timm:resnet18", "torchvision:resnet18", "ultralytics:yolov8n.yaml"])
def test_library_that_is_not_installed(folder, factory, monkeypatch):
    """The error says which library is missing and how to get it, with the exit status of a lacking environment."""
    library = factory.partition(":")[0]
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingLibrary, match="E811") as caught:
        build(folder, factory)
    assert caught.value.exit_status == 6
    assert caught.value.help == f"pip install {library}"


@pytest.mark.parametrize(("factory", "argument"), [("timm:resnet18", "pretrained"), ("torchvision:resnet18", "weights")])
def test_argument_that_would_download_is_refused(folder, factory, argument):
    """Weights come from the checkpoint: nothing is downloaded, not even on request."""
    with pytest.raises(ConfigError, match="E308"):
        build(folder, factory, **{argument: True})


class TestPt2:
    """A ``.pt2`` is code: ours by its record, or trusted in so many words, or not loaded."""

    @pytest.fixture
    def pt2(self, folder):
        """An exported program written by torch itself."""
        program = torch.export.export(nn.Linear(3, 2).eval(), (torch.zeros(2, 3),))
        torch.export.save(program, folder / "net.pt2")
        return folder / "net.pt2"

    def test_foreign_file_is_refused(self, pt2, monkeypatch):
        """Without a record torch never sees the file, and the message names the flag."""
        monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("torch.export.load was called"))
        with pytest.raises(ArtifactError, match="E309") as caught:
            build(pt2.parent, "net.pt2")
        assert "--trust-code" in caught.value.help

    def test_trusted_file_is_loaded(self, pt2):
        """``trust_code`` is the user's decision."""
        network = build_model(ModelConfig(factory="net.pt2", trust_code=True), base=pt2.parent)
        assert network(torch.zeros(2, 3)).shape == (2, 2)

    def test_file_with_our_record_is_loaded(self, pt2):
        """A keyed record of this machine is proof enough."""
        from exporter.records import write_record

        write_record(pt2, key="k", content={})
        assert build(pt2.parent, "net.pt2")(torch.zeros(2, 3)).shape == (2, 2)

    def test_trusted_rubbish_is_an_error_of_the_file(self, folder):
        """A file that torch cannot load is no bug of ours."""
        (folder / "net.pt2").write_bytes(b"not a zip")
        with pytest.raises(ExporterError, match="E306"):
            build_model(ModelConfig(factory="net.pt2", trust_code=True), base=folder)
