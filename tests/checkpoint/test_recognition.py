"""Files are recognised by their content; what is not read is refused by name."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from exporter.checkpoint import open_checkpoint
from exporter.errors import CheckpointError


def tar() -> bytes:
    """Return a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    return buffer.getvalue()


FOREIGN = {
    "pickle without a header": (pickle.dumps({"a": 1}, 0), "protocol 0"),
    "tar": (tar(), "tar archive"),
    "gzip": (gzip.compress(b"x"), "gzip"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(100), "NumPy"),
    "web page": (b"<!DOCTYPE html><html></html>", "HTML"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS"),
    "JSON": (b'{"a": [1]}', "no index of shards"),
    "JSON list": (b"[1]", "JSON"),
    "text": (b"hello world", "text"),
    "gguf": (b"GGUF" + bytes(20), "GGUF"),
    "random bytes": (bytes(range(200, 240)), "begins with c8"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_container_is_refused_by_name(case: str, tmp_path: Path) -> None:
    """The message says what the file looks like."""
    content, words = FOREIGN[case]
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="container") as refused:
        open_checkpoint(path)
    assert refused.value.code == "E105"
    assert words in refused.value.facts["found"]


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "pkl", "ckpt", ""])
@pytest.mark.parametrize("container", ["torch zip", "torch legacy", "pickle"])
def test_content_decides(container: str, suffix: str, tmp_path: Path) -> None:
    """Each container is recognised under any name."""
    path = tmp_path / f"weights.{suffix}"
    value = {"w": torch.ones(2)}
    if container == "pickle":
        path.write_bytes(pickle.dumps(value))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=container == "torch zip")
    assert open_checkpoint(path).container == container


def test_suffix_does_not_matter(digits: Path) -> None:
    """A torch file under any name is a torch file."""
    renamed = (digits / "digits.pt").rename(digits / "weights.safetensors")
    assert open_checkpoint(renamed).container == "torch zip"


@pytest.mark.parametrize(("kind", "code"), [("missing", "E101"), ("folder", "E102"), ("pipe", "E102"), ("empty", "E106")])
def test_what_is_no_file_is_refused(kind: str, code: str, tmp_path: Path) -> None:
    """A pipe does not hang the program; each has its own message."""
    path = tmp_path / "x.pt"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(path)
    assert refused.value.code == code


def test_opening_and_reading_the_layout_import_no_heavy_library(digits: Path, repository: Path) -> None:
    """Neither torch nor NumPy is imported to look into a file."""
    code = (
        "import sys; from pathlib import Path; from exporter.checkpoint import open_checkpoint; from exporter.weights import read_layout\n"
        f"read_layout(open_checkpoint(Path({str(digits / 'digits.pt')!r})))\n"
        "print([name for name in ('torch', 'numpy', 'onnx', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository, check=True)
    assert done.stdout.strip() == "[]"


def test_opening_reads_no_tensor_bytes(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the directory, headers and the pickle are read: less than the tensors' bytes, and none of theirs."""
    path = digits / "digits.pt"
    storages = [ref.storage for ref in open_checkpoint(path).root["model_ema"].values()]
    spans: list[tuple[int, int]] = []
    real = os.pread

    def watched(descriptor: int, count: int, offset: int) -> bytes:
        spans.append((offset, offset + count))
        return real(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", watched)
    open_checkpoint(path)
    assert spans
    large = [storage for storage in storages if storage.size_bytes > 512]
    assert large
    assert not [s for s in large for begin, end in spans if begin < s.offset + s.size_bytes and end > s.offset]
