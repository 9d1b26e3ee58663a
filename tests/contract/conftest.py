from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from bindings import fake_driver, fetch, interpreter  # noqa: E402
from releases import RELEASES  # noqa: E402

from exporter.trt_worker import Service, Worker  # noqa: E402


@pytest.fixture(params=RELEASES, ids=str, scope="session")
def release(request):
    """A release of TensorRT."""
    return request.param


@pytest.fixture
def python(release):
    """An interpreter that the release has bindings for."""
    return interpreter(release)


@pytest.fixture
def surroundings(release, monkeypatch):
    """Let a worker that is started in this test find the release's bindings, the stubs and the stand-in for the driver."""
    folder = fetch(release)
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{folder / 'stubs'}:{fake_driver()}:{os.environ.get('LD_LIBRARY_PATH', '')}")
    monkeypatch.setenv("EXPORTER_CONTRACT_SITE", str(folder / "site"))
    return folder


@pytest.fixture
def start(surroundings, python, monkeypatch):
    """Return a function that starts a worker whose TensorRT fails as told."""

    def start_with(**scenario):
        monkeypatch.setenv("EXPORTER_CONTRACT_SCENARIO", json.dumps(scenario))
        return Worker(python, service=Service("contract_service", str(HERE)))

    return start_with
