"""A real TensorRT on a machine without a GPU: it is refused cleanly, where on its own it raises nonsense or ends by a signal.

``EXPORTER_CONTRACT_TENSORRT_PYTHON`` names an interpreter that has one. With ``EXPORTER_CONTRACT_LARGE=1`` (`tox -e tensorrt-8`) the complete
TensorRT 8.6.0 is installed beside CPython 3.10 in the cache folder: three gigabytes, so nothing does that by itself.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess

import pytest
from bindings import LARGE, compile_library, environment_of, fake_driver

from exporter.config import TensorrtConfig
from exporter.engine import probe, require
from exporter.errors import EngineBuildError, NoGpu
from exporter.trt_worker import Worker

NAMED = os.environ.get("EXPORTER_CONTRACT_TENSORRT_PYTHON", "")
PACKAGES = ("tensorrt==8.6.0", "nvidia-cublas-cu12==12.1.3.1", "nvidia-cuda-runtime-cu12==12.1.105", "nvidia-cudnn-cu12==8.9.2.26", "numpy==1.26.4")


def has_driver() -> bool:
    """Whether this machine has an NVIDIA driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not (NAMED or LARGE), reason="a real TensorRT is three gigabytes: EXPORTER_CONTRACT_LARGE=1, or tox -e tensorrt-8"),
    pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver: tests/gpu is for it"),
]


@pytest.fixture(scope="module")
def python() -> str:
    """An interpreter with a real TensorRT."""
    return NAMED or str(environment_of(10, "tensorrt-8.6.0", PACKAGES))


@pytest.fixture
def arguments(tmp_path):
    """Arguments of a build."""
    onnx = tmp_path / "a.onnx"
    onnx.write_bytes(b"")
    return {"onnx_path": str(onnx), "profiles": [], "tf32": False, "workspace_bytes": 1 << 20, "optimization_level": 0, "timing_iterations": 8}


def test_the_probe_tells_the_version_and_what_is_missing(python):
    """TensorRT is found without being imported, and the missing driver is what is reported."""
    support = probe(TensorrtConfig(python=python))
    assert not support.available
    assert support.tensorrt_version
    assert support.code == "E851"
    assert "libcuda.so.1" in support.missing
    with pytest.raises(NoGpu, match="cannot be built"):
        require(TensorrtConfig(python=python))


def test_a_build_is_refused_before_tensorrt_is_touched(python, arguments):
    """Building and loading end with the missing GPU, and the worker lives on."""
    with Worker(python) as worker:
        for verb, given in (("build", arguments), ("load", {"path": arguments["onnx_path"], "sha256": hashlib.sha256(b"").hexdigest()})):
            with pytest.raises(NoGpu) as caught:
                worker.request(verb, given, limit_s=120)
            assert caught.value.code == "E851"


def test_what_would_happen_without_the_probe(python, arguments, monkeypatch):
    """Behind a stand-in for the driver, the real Builder finds no device (E858) and the real Runtime of 8.6 ends by SIGSEGV (E504)."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(fake_driver()))
    with Worker(python) as worker:
        with pytest.raises(NoGpu, match="no usable CUDA device") as caught:
            worker.request("build", arguments, limit_s=120)
        assert caught.value.code == "E858"
        assert "CUDA initialization failure" in caught.value.facts["TensorRT"]
        with pytest.raises(EngineBuildError, match="ended by SIGSEGV") as caught:
            worker.request("load", {"path": arguments["onnx_path"], "sha256": hashlib.sha256(b"").hexdigest()}, limit_s=120)
    assert caught.value.code == "E504"
    assert caught.value.facts["during"] == "load"
    assert "Segmentation fault" in caught.value.facts["last lines"]
    assert "session.py" in caught.value.facts["last lines"]


def test_the_real_registry_takes_no_library_without_plugins(python, arguments, monkeypatch, tmp_path):
    """TensorRT registers its own plugins with our logger, and returns None for a library that exports none: an error, before anything is built."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(fake_driver()))
    source, library = tmp_path / "nothing.c", tmp_path / "libnothing.so"
    source.write_text("int nothing(void) { return 0; }\n")
    compile_library(source, library, soname=library.name)
    plugin = {"path": str(library), "sha256": hashlib.sha256(library.read_bytes()).hexdigest()}
    with Worker(python) as worker, pytest.raises(EngineBuildError) as caught:
        worker.request("build", {**arguments, "plugins": [plugin]}, limit_s=120)
    assert caught.value.code == "E558"
    assert "load_library returned None" in caught.value.facts["found"]


def test_tensorrt_itself_behaves_like_that(python):
    """This is why a worker asks the driver first: on its own, this TensorRT raises a TypeError, and then ends the process."""
    script = (
        "import tensorrt as trt\nL = trt.Logger()\ntry:\n    trt.Builder(L)\nexcept TypeError as err:\n    print(err, flush=True)\ntrt.Runtime(L)"
    )
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    assert "factory function returned nullptr" in done.stdout
    assert done.returncode == -11
