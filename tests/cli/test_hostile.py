"""A file that would run code does not run it, through any command that reads a checkpoint."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch


class Payload:
    """Unpickles as a call of ``open(canary, "w")``, which leaves a file behind."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.canary), "w")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """The file that the payload would create."""
    return tmp_path / "canary"


def _torch_zip(canary: Path, path: Path) -> None:
    average = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(2, 2))
    torch.save({"model": torch.nn.Linear(2, 2).state_dict(), "model_ema": average.state_dict(), "extra": Payload(canary)}, path)


def _state_dict_zip(canary: Path, path: Path) -> None:
    torch.save(Payload(canary), path)


def _legacy_torch(canary: Path, path: Path) -> None:
    torch.save({"extra": Payload(canary)}, path, _use_new_zipfile_serialization=False)


def _plain_pickle(canary: Path, path: Path) -> None:
    path.write_bytes(pickle.dumps({"extra": Payload(canary)}))


def _zip_of_a_pickle(canary: Path, path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(canary)))
        archive.writestr("archive/version", "3\n")
    path.write_bytes(buffer.getvalue())


def _safetensors_name(canary: Path, path: Path) -> None:
    path.with_suffix(".safetensors").write_bytes(pickle.dumps(Payload(canary)))
    path.write_bytes(pickle.dumps(Payload(canary)))


WRITERS = [_torch_zip, _state_dict_zip, _legacy_torch, _plain_pickle, _zip_of_a_pickle, _safetensors_name]
SHOWS = {
    "inspect": ["inspect", "digits.pt"],
    "inspect tree": ["inspect", "digits.pt", "--tree", "--digest"],
    "init": ["init", "digits.pt", "--force"],
}
USES = {
    "bake-ema": ["bake-ema"],
    "bake-ema raw": ["bake-ema", "digits.pt", "--weights", "raw"],
    "run": ["run"],
    "fuse-bn": ["fuse-bn", "--check"],
    "fuse-bn model": ["fuse-bn", "model.py:build", "--checkpoint", "digits.pt"],
    "export-onnx": ["export-onnx"],
    "check": ["check"],
    "bench": ["bench"],
}
NEEDS_A_GPU = {"build-trt": ["build-trt"]}


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__.strip("_"))
@pytest.mark.parametrize("arguments", [*SHOWS.values(), *USES.values(), *NEEDS_A_GPU.values()], ids=[*SHOWS, *USES, *NEEDS_A_GPU])
def test_no_payload_runs(
    digits: Path,
    canary: Path,
    write: Callable[[Path, Path], None],
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing of the file is executed; the commands that would use it refuse it with exit status 4, and none shows a traceback."""
    from exporter.cli.app import main

    write(canary, digits / "digits.pt")
    monkeypatch.chdir(digits)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert not canary.exists()
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    expected = {4} if arguments in USES.values() else {0, 4} if arguments in SHOWS.values() else {6}
    assert caught.value.code in expected
    if caught.value.code == 4:
        assert "digits.pt" in shown.err


def test_the_payload_works_where_pickles_are_executed(canary: Path, tmp_path: Path) -> None:
    """The payload is real: Python's own unpickler creates the file."""
    path = tmp_path / "p.pkl"
    _plain_pickle(canary, path)
    with path.open("rb") as file:
        pickle.load(file)["extra"].close()
    assert canary.exists()


def test_inspect_names_the_call(digits: Path, canary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``inspect`` shows which global the file would call, and where."""
    from exporter.cli.app import main

    path = digits / "hostile.pt"
    _torch_zip(canary, path)
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(path)])
    assert not caught.value.code
    shown = capsys.readouterr().out
    assert "SUSPICIOUS" in shown
    assert "io.open" in shown or "open" in shown
    assert "extra" in shown
