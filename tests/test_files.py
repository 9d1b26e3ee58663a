"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exporter.errors import ArtifactError
from exporter.files import atomic_write, digest_of_file, digest_of_settings, write_bytes, write_json


def test_a_file_appears_whole(tmp_path: Path) -> None:
    """The target holds the content, and nothing else is left in the folder."""
    path = tmp_path / "new" / "out.bin"
    write_bytes(path, b"content")
    assert path.read_bytes() == b"content"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    """Whatever happens inside the block, the old content stays and the temporary file is gone."""
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")

    def write() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_system_call_is_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A failed sync or rename is reported with the file's name; the old file stays."""
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ArtifactError, match="nothing was changed") as caught:
        write_bytes(path, b"new")
    assert caught.value.code == "E711"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """A target below a file names the target."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"out\.bin"):
        write_bytes(tmp_path / "file" / "out.bin", b"")


def test_a_kill_leaves_the_old_file(tmp_path: Path) -> None:
    """SIGKILL in the middle of a write never shows in the target."""
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    script = (
        "import sys, time; from pathlib import Path; from exporter.files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); print('ready', flush=True); time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"old"


def test_digests(tmp_path: Path) -> None:
    """The digest of settings does not depend on the order of keys; that of a file is plain SHA-256."""
    assert digest_of_settings({"a": 1, "b": [2]}) == digest_of_settings({"b": [2], "a": 1})
    assert digest_of_settings({"a": 1}) != digest_of_settings({"a": 2})
    path = tmp_path / "empty"
    write_bytes(path, b"")
    assert str(digest_of_file(path)) == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_json_is_deterministic(tmp_path: Path) -> None:
    """The same value gives the same bytes."""
    write_json(tmp_path / "a", {"b": 1, "a": "ü"})
    write_json(tmp_path / "b", {"a": "ü", "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
