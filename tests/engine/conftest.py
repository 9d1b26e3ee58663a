from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "contract"))

from bindings import stand_in_python
from releases import RELEASES

from exporter.artifacts import Digest, OnnxModel, Provenance, TensorSpec
from exporter.config import TensorrtConfig

IMAGE = TensorSpec("image", ("batch", 1, 8, 8), "float32")
LOGITS = TensorSpec("logits", ("batch", 10), "float32")


@pytest.fixture
def release():
    """The newest release; a test that says so runs on others too."""
    return RELEASES[-1]


@pytest.fixture
def config(release, tmp_path):
    """Settings whose worker runs a stand-in for TensorRT on the release's real bindings: nothing here is a GPU."""
    return TensorrtConfig(python=str(stand_in_python(release, tmp_path)))


@pytest.fixture
def scenario(monkeypatch):
    """Return a function that says what shall go wrong in the stand-in."""

    def set_scenario(**steps):
        monkeypatch.setenv("EXPORTER_CONTRACT_SCENARIO", json.dumps(steps))

    return set_scenario


@pytest.fixture
def make_model(tmp_path):
    """Return a function that makes an ONNX artefact; the stand-in does not read its bytes."""

    def make(content: bytes = b"onnx", outputs=(LOGITS,)):
        path = tmp_path / "digits.onnx"
        path.write_bytes(content)
        provenance = Provenance("onnx", lineage={"checkpoint": "digits.pt", "ema": "ema"})
        return OnnxModel(path, Digest(hashlib.sha256(content).hexdigest()), 20, 10, (IMAGE,), tuple(outputs), 1, 0, {}, provenance)

    return make
