"""Baking that is killed, or that the operating system refuses something, leaves the old output whole, or the new one: never half."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import ArtifactError, ExporterError
from exporter.files import write_bytes
from exporter.tensors import read_tensor
from exporter.weights import bake, load_weights

BAKE = """
import sys
from pathlib import Path
from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.weights import bake
for number in range(10**6):
    bake(open_checkpoint(Path(sys.argv[1])), BakeConfig(choice=("ema", "raw")[number % 2]), Path(sys.argv[2]))
    if number == 0:
        print("ready", flush=True)
"""
KILLS = 10


def contents(path: Path) -> dict[str, bytes]:
    """Return every tensor of a baked file, which must be whole."""
    return {name: read_tensor(ref).tobytes() for name, ref in open_checkpoint(path).root.items()}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where to bake to: a folder for nothing else."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "w.safetensors"


@pytest.fixture
def both(digits: Path, tmp_path: Path) -> list[dict[str, bytes]]:
    """What a whole output can hold: the average, or the raw weights."""
    made = []
    for choice in ("ema", "raw"):
        bake(open_checkpoint(digits / "digits.pt"), BakeConfig(choice=choice), tmp_path / choice)
        made.append(contents(tmp_path / choice))
    return made


def test_kills_at_random_moments(digits: Path, output: Path, both: list[dict[str, bytes]], repository: Path) -> None:
    """Over and over, a process that bakes without end is killed: what stands there is one of the two outputs, whole."""
    rng, seen = random.Random(4), set()
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    for _ in range(KILLS):
        with subprocess.Popen([sys.executable, "-c", BAKE, str(digits / "digits.pt"), str(output)], stdout=subprocess.PIPE, env=environment) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0.0, 0.15))
            child.send_signal(signal.SIGKILL)
        seen.add(both.index(contents(output)))
        if (weights := load_weights(output)) is not None:  # the record is written after the file, so it may be that of the one before
            assert weights.summary.choice == ("ema:model_ema", "raw")[both.index(contents(output))]
    assert seen == {0, 1}
    bake(open_checkpoint(digits / "digits.pt"), BakeConfig(), output)
    assert load_weights(output) is not None


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EMFILE, errno.EACCES], ids=lambda error: errno.errorcode[error])
def test_each_system_call_fails_once(error: int, digits: Path, output: Path, both: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever call fails, the output is the old one or the new one, the error is ours with exit status 4, and nothing else is left."""
    checkpoint, failures = open_checkpoint(digits / "digits.pt"), 0
    for name in ("open", "write", "fsync", "preadv"):
        for nth in (*range(1, 7), 20, 40):
            bake(checkpoint, BakeConfig(), output)
            with monkeypatch.context() as patch:
                failed = _failing(patch, name, nth, error)
                with contextlib.suppress(ExporterError):
                    bake(checkpoint, BakeConfig(choice="raw"), output)
            failures += len(failed)
            found = contents(output)
            assert found in both
            if failed:
                left = {path.name for path in output.parent.iterdir()}
                assert left <= {"w.safetensors", "w.safetensors.json"}, (name, nth)
    assert failures > 12


def _failing(patch: pytest.MonkeyPatch, name: str, nth: int, error: int) -> list[int]:
    """Let the ``nth`` call of ``os.<name>`` fail; return a list that fills when it did."""
    real, failed, count = getattr(os, name), [], [0]

    def call(*arguments: object, **options: object) -> object:
        count[0] += 1
        if count[0] == nth:
            failed.append(nth)
            raise OSError(error, os.strerror(error))
        return real(*arguments, **options)

    patch.setattr(os, name, call)
    return failed


LIMITED = """
import resource, sys
from pathlib import Path
from exporter.cli.app import main
import exporter.weights, exporter.checkpoint, exporter.workspace, exporter.report, numpy, ml_dtypes
kind, size = getattr(resource, sys.argv[1]), int(sys.argv[2])
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(kind, (size, size))
main(["bake-ema", *sys.argv[3:]])
"""


@pytest.mark.parametrize(
    ("limit", "size"),
    [("RLIMIT_FSIZE", 0), ("RLIMIT_FSIZE", 100), ("RLIMIT_FSIZE", 20_000), ("RLIMIT_FSIZE", 80_000)],
)
def test_limits_of_the_operating_system(limit: str, size: int, digits: Path, output: Path, repository: Path) -> None:
    """A file that may grow no further: one message, exit status 4, the old output, nothing beside it."""
    output.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, limit, str(size), str(digits / "digits.pt"), "--weights", "raw", "-o", str(output)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(repository)},
        cwd=output.parent,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith("error[E")
    assert "Traceback" not in done.stderr
    assert output.read_bytes() == b"old"
    assert [path.name for path in output.parent.iterdir()] == ["w.safetensors"]


def test_a_full_disk(tmp_path: Path) -> None:
    """A device that is always full: the write is an error of ours, and the target is as it was."""
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("this machine has no /dev/full")
    link = tmp_path / "out.bin"
    link.write_bytes(b"old")
    real = os.open

    def full(path: object, flags: int, *arguments: object, **options: object) -> int:
        made = real(path, flags, *arguments, **options)
        if flags & os.O_CREAT:
            os.dup2(real("/dev/full", os.O_RDWR), made)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", full)
        with pytest.raises(ArtifactError) as refused:
            write_bytes(link, b"new" * 10_000)
    assert refused.value.code == "E711"
    assert "space" in refused.value.facts["found"]
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.bin", b"old")]
