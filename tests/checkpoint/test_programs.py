"""``.pt2`` and TorchScript archives: their weights are read as torch reads them, and their code is not run."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from exporter.artifacts import ObjectRef
from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import CheckpointError, InputRefused
from exporter.weights import bake
from tests.checkpoint.tensor_forms import DTYPES, same_bytes, write

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # TorchScript is old
    pytest.mark.filterwarnings("ignore:No complete tensor found"),  # of torch, on exporting a transposed parameter
]


class Inner(nn.Module):
    """A linear layer and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised output."""
        return self.norm(self.linear(x))


class Network(nn.Module):
    """Every dtype, views, tied and frozen parameters, lists of modules, and tensors that are neither parameter nor buffer."""

    def __init__(self, *, all_dtypes: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = Inner()
        self.blocks = nn.ModuleList([Inner(), Inner()])
        self.tied = self.inner.linear.weight
        self.frozen = nn.Parameter(torch.rand(4), requires_grad=False)
        self.turned = nn.Parameter(torch.rand(3, 2).t())
        self.more = nn.ParameterList([nn.Parameter(torch.rand(2)), nn.Parameter(torch.rand(1))])
        base = torch.arange(6.0)
        self.register_buffer("part", base[2:4])
        self.register_buffer("rest", base)
        for dtype in DTYPES if all_dtypes else ():
            name = str(dtype).removeprefix("torch.")
            self.register_buffer(f"of_{name}", (torch.arange(3) % 2).to(dtype))
        self.plain = torch.arange(3)
        self.sizes = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return something of every part."""
        for block in self.blocks:
            x = x + block(x).sum()
        return self.inner(x) + self.frozen.sum() + self.turned.sum() + self.plain.sum() + self.part.sum() + torch.ones(2)


def exported(module: nn.Module) -> bytes:
    """Return what torch.export.save writes."""
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(module.eval(), (torch.rand(2, 3),)), buffer)
    return buffer.getvalue()


def scripted(module: nn.Module) -> bytes:
    """Return what torch.jit.save writes of a scripted module."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module.eval()), buffer)
    return buffer.getvalue()


def traced(module: nn.Module) -> bytes:
    """Return what torch.jit.save writes of a traced module."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(module.eval(), torch.rand(2, 3)), buffer)
    return buffer.getvalue()


def torch_export_state(path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict that torch loads from a .pt2 file."""
    return dict(torch.export.load(path).state_dict)


def torch_jit_state(path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict that torch loads from a TorchScript file."""
    return dict(torch.jit.load(path).state_dict())


FORMS: dict[str, tuple[Callable[[nn.Module], bytes], Callable[[Path], dict[str, torch.Tensor]]]] = {
    "export": (exported, torch_export_state),
    "script": (scripted, torch_jit_state),
    "trace": (traced, torch_jit_state),
}


@pytest.mark.parametrize("form", FORMS)
def test_state_dict_as_torch_loads_it(form: str, tmp_path: Path) -> None:
    """Names, dtypes, shapes and bytes are those of the program that torch loads; nothing else is in the tree."""
    save, load = FORMS[form]
    path = write(tmp_path / "x.bin", save(Network()))
    checkpoint = open_checkpoint(path)
    wanted = load(path)
    assert not checkpoint.calls
    assert "not run" in checkpoint.container
    assert checkpoint.metadata["code"] == "not run"
    assert isinstance(checkpoint.root, dict)
    assert set(checkpoint.root) == set(wanted)
    same_bytes({name: checkpoint.root[name] for name in wanted}, wanted)
    if form != "export":
        assert list(checkpoint.root) == list(wanted)
    assert {name for name, ref in checkpoint.root.items() if ref.is_parameter} >= {"frozen", "turned", "inner.linear.weight"}


@pytest.mark.parametrize("form", FORMS)
def test_baked(form: str, tmp_path: Path) -> None:
    """The weights of a program bake as raw weights, and say where they are from."""
    save, load = FORMS[form]
    path = write(tmp_path / "x.bin", save(Network(all_dtypes=False)))
    weights = bake(open_checkpoint(path), BakeConfig(choice="raw"), tmp_path / "out.safetensors")
    wanted = load(path)
    root = open_checkpoint(weights.path).root
    same_bytes({name: root[name] for name in wanted}, wanted)


def rewritten(content: bytes, change: Callable[[str, bytes], tuple[str, bytes] | None], *more: tuple[str, bytes]) -> bytes:
    """Return the archive with every member changed; None leaves one out. Code stays compressed, as torch writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, "w") as target:
        for info in source.infolist():
            changed = change(info.filename, source.read(info))
            if changed is not None:
                target.writestr(changed[0], changed[1], compress_type=info.compress_type)
        for name, added in more:
            target.writestr(name, added)
    return buffer.getvalue()


def replaced(end: str, old: bytes, new: bytes) -> Callable[[str, bytes], tuple[str, bytes]]:
    """Return a change of the members whose name ends so."""

    def change(name: str, content: bytes) -> tuple[str, bytes]:
        assert not name.endswith(end) or old in content, content
        return name, content.replace(old, new) if name.endswith(end) else content

    return change


def without(end: str) -> Callable[[str, bytes], tuple[str, bytes] | None]:
    """Return a change that leaves out the members whose name ends so."""
    return lambda name, content: None if name.endswith(end) else (name, content)


SMALL = nn.Sequential(nn.Linear(3, 2))
CONFIG = "_weights_config.json"
CALL = b"\x80\x02cposix\nsystem\n(X\x04\x00\x00\x00truetR."
LYING = {
    "export: another format": ("export", replaced("archive_format", b"pt2", b"pt3"), "E134"),
    "export: no configuration": ("export", without(CONFIG), "E134"),
    "export: a weight that is missing": ("export", without("weights/weight_0"), "E134"),
    "export: configuration that is no JSON": ("export", replaced(CONFIG, b"{", b"["), "E134"),
    "export: a weight twice": ("export", replaced(CONFIG, b'"0.bias"', b'"0.weight"'), "E134"),
    "export: a larger shape": ("export", replaced(CONFIG, b'[{"as_int": 2}]', b'[{"as_int": 3}]'), "E134"),
    "export: a huge shape": ("export", replaced(CONFIG, b'[{"as_int": 2}]', b'[{"as_int": 4611686018427387904}]'), "E134"),
    "export: a negative shape": ("export", replaced(CONFIG, b'[{"as_int": 2}]', b'[{"as_int": -2}]'), "E134"),
    "export: a shape in symbols": ("export", replaced(CONFIG, b'{"as_int": 2}', b'{"as_expr": "s0"}'), "E134"),
    "export: an unknown dtype": ("export", replaced(CONFIG, b'"dtype": 7', b'"dtype": 99'), "E134"),
    "export: a dtype that is text": ("export", replaced(CONFIG, b'"dtype": 7', b'"dtype": "7"'), "E134"),
    "export: an escaping member": ("export", replaced(CONFIG, b'"weight_0"', b'"../constants/x"'), "E134"),
    "export: big endian": ("export", replaced("byteorder", b"little", b"big"), "E108"),
    "script: no modules": ("script", lambda name, content: (name, b"\x80\x02}." if name.endswith("/data.pkl") else content), "E134"),
    "script: no data": ("script", without("/data.pkl"), "E134"),
    "script: no code": ("script", without(".py"), "E134"),
    "script: a storage that is missing": ("script", without("data/0"), "E112"),
    "script: code that is no text": ("script", lambda name, content: (name, b"\xff\xfe" if name.endswith(".py") else content), "E134"),
    "script: big endian": ("script", replaced("byteorder", b"little", b"big"), "E108"),
}


@pytest.mark.parametrize("case", LYING)
def test_lying_program_is_refused(case: str, tmp_path: Path) -> None:
    """Each is refused with its code; the message names the file, the member and the reason."""
    form, change, code = LYING[case]
    path = write(tmp_path / "x.bin", rewritten(FORMS[form][0](SMALL), change))
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(path)
    assert refused.value.code == code, refused.value
    assert refused.value.facts["file"] == str(path)
    assert refused.value.facts["found"]


@pytest.mark.parametrize("form", FORMS)
def test_the_control_is_accepted(form: str, tmp_path: Path) -> None:
    """An archive that was only packed again opens."""
    path = write(tmp_path / "x.bin", rewritten(FORMS[form][0](SMALL), lambda name, content: (name, content)))
    assert set(open_checkpoint(path).root) == {"0.weight", "0.bias"}


@pytest.mark.parametrize("form", ["export", "script"])
def test_compressed_tensors_are_refused(form: str, tmp_path: Path) -> None:
    """Only the text of a program may be compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(FORMS[form][0](SMALL))) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(write(tmp_path / "x.bin", buffer.getvalue()))
    assert refused.value.code == "E107"


def with_text(size: int) -> bytes:
    """Return an archive of TorchScript with so many bytes of text more."""
    content = scripted(SMALL)
    with zipfile.ZipFile(io.BytesIO(content)) as source:
        root = source.namelist()[0].split("/")[0]
    buffer = io.BytesIO(rewritten(content, lambda name, text: (name, text)))
    with zipfile.ZipFile(buffer, "a") as target:
        target.writestr(f"{root}/code/bomb.py", bytes(size), compress_type=zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def test_a_program_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    """Text beyond 64 MiB is refused by its declared size, and one that says less than it unpacks to by its real one."""
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(write(tmp_path / "x.bin", with_text(1 << 27)))
    assert refused.value.code == "E111"
    size, less = (123_456_789).to_bytes(4, "little"), (1_234).to_bytes(4, "little")
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(write(tmp_path / "x.bin", with_text(123_456_789).replace(size, less)))
    assert refused.value.code == "E109"


@pytest.mark.parametrize("member", ["data.pkl", "constants.pkl"])
def test_payload_in_torchscript_is_seen_and_does_not_run(member: str, tmp_path: Path) -> None:
    """A call in either pickle is refused, or listed so that baking refuses it."""
    canary = tmp_path / "canary"
    run = f"touch {canary}".encode()
    call = b"cposix\nsystem\n(X" + len(run).to_bytes(4, "little") + run + b"tR0"
    change = lambda name, content: (name, content[:2] + call + content[2:] if name.endswith(f"/{member}") else content)  # noqa: E731
    checkpoint = open_checkpoint(write(tmp_path / "x.bin", rewritten(scripted(SMALL), change)))
    assert [str(found) for found in checkpoint.calls.values()] == ["posix.system"]
    with pytest.raises(InputRefused, match="calls code"):
        bake(checkpoint, BakeConfig(choice="raw"), tmp_path / "out.safetensors")
    assert not canary.exists()


def test_a_pickled_weight_of_an_exported_program_stays_a_record(tmp_path: Path) -> None:
    """torch.export.load would unpickle it with code; here it is no plain tensor, and baking says so."""
    canary = tmp_path / "canary"
    inner = io.BytesIO()
    torch.save(Payload(canary), inner)
    content = rewritten(
        exported(SMALL),
        lambda name, content: (
            (name, content.replace(b'"use_pickle": false', b'"use_pickle": true', 1))
            if name.endswith(CONFIG)
            else (name, inner.getvalue() if name.endswith("weights/weight_0") else content)
        ),
    )
    path = write(tmp_path / "x.bin", content)
    checkpoint = open_checkpoint(path)
    assert [type(node) for node in checkpoint.root.values()].count(ObjectRef) == 1
    with pytest.raises(InputRefused) as refused:
        bake(checkpoint, BakeConfig(choice="raw"), tmp_path / "out.safetensors")
    assert refused.value.code == "E210"
    assert not canary.exists()
    with pytest.raises(Exception, match=r".*"):
        torch.export.load(path).module()
    assert canary.exists()


class Payload:
    """Unpickles as a call that makes the folder ``canary``."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("form", ["export", "script"])
def test_truncated_at_any_byte_is_refused(form: str, tmp_path: Path) -> None:
    """Whatever is missing at the end, the file is refused by name."""
    content = FORMS[form][0](SMALL)
    path = tmp_path / "x.bin"
    for length in [*range(0, len(content), 7), *range(len(content) - 60, len(content))]:
        with pytest.raises(CheckpointError) as refused:
            open_checkpoint(write(path, content[:length]))
        assert refused.value.facts["file"] == str(path)


@pytest.mark.parametrize("form", ["export", "script"])
def test_any_flipped_bit_is_refused_or_changes_nothing(form: str, tmp_path: Path) -> None:
    """Every byte that is used has a checksum: a flip is refused, or the tensors are as they were."""
    content = FORMS[form][0](SMALL)
    wanted = SMALL.state_dict()
    path, rng, refused = tmp_path / "x.bin", random.Random(0), 0
    for _ in range(150):
        damaged = bytearray(content)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        try:
            weights = bake(open_checkpoint(write(path, bytes(damaged))), BakeConfig(choice="raw"), tmp_path / "out.safetensors")
        except InputRefused:
            refused += 1
        else:
            root = open_checkpoint(weights.path).root
            same_bytes({name: root[name] for name in wanted}, wanted)
    assert refused > 20


def test_no_library_of_torch_is_needed_for_a_program(tmp_path: Path, repository: Path) -> None:
    """Looking into a program imports neither torch nor NumPy."""
    import subprocess
    import sys

    path = write(tmp_path / "x.bin", scripted(SMALL))
    code = f"import sys; from pathlib import Path; from exporter.checkpoint import open_checkpoint; open_checkpoint(Path({str(path)!r}))\n"
    code += "print([name for name in ('torch', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository, check=True)
    assert done.stdout.strip() == "[]"
    assert json.loads(done.stdout.strip()) == []
