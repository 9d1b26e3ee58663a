"""Checkpoints in buckets of S3, from a server on this machine that speaks its protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import CheckpointError
from exporter.weights import bake

pytestmark = pytest.mark.buckets


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of the server; the bucket ``models`` is there, and the environment leads to it."""
    import boto3
    from moto.server import ThreadedMotoServer

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, value in {**settings, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=settings["AWS_ENDPOINT_URL"])
    client.create_bucket(Bucket="models")
    yield client
    client.close()
    server.stop()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint with an average of 3 MB beside other tensors."""
    state = {f"blocks.{i}.weight": torch.randn(256, 1024) for i in range(3)}
    torch.save({"state_dict": state, "state_dict_ema": {name: value + 1 for name, value in state.items()}}, tmp_path / "last.pt")
    return tmp_path / "last.pt"


def test_bake_from_a_bucket_gives_the_same_bytes(bucket: Any, saved: Path, tmp_path: Path) -> None:
    """A checkpoint in a bucket is baked as the file on this machine is, bit for bit."""
    bucket.upload_file(str(saved), "models", "runs/last.pt")
    config = BakeConfig(drift="never", digest="contents")
    bake(open_checkpoint(saved), config, tmp_path / "here.safetensors")
    remote = open_checkpoint("s3://models/runs/last.pt")
    bake(remote, config, tmp_path / "there.safetensors")
    assert remote.size_bytes == saved.stat().st_size
    assert (tmp_path / "there.safetensors").read_bytes() == (tmp_path / "here.safetensors").read_bytes()


def test_an_object_that_was_replaced_is_an_error(bucket: Any, saved: Path, tmp_path: Path) -> None:
    """Another object under the same key, after the checkpoint was opened, ends the job, and nothing is written."""
    bucket.upload_file(str(saved), "models", "last.pt")
    checkpoint = open_checkpoint("s3://models/last.pt")
    content = bytearray(saved.read_bytes())
    content[-1000] ^= 1
    bucket.put_object(Bucket="models", Key="last.pt", Body=bytes(content))
    with pytest.raises(CheckpointError) as caught:
        bake(checkpoint, BakeConfig(), tmp_path / "out.safetensors")
    assert caught.value.code == "E154"
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("url", ["s3://models/no-such.pt", "s3://no-such-bucket/last.pt"])
def test_what_is_not_there_is_said_to_be_missing(bucket: Any, url: str) -> None:
    """A key or a bucket that is not there is an error that names the URL."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(url)
    assert caught.value.code == "E151"
    assert url in str(caught.value)
