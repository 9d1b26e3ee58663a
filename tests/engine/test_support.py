from __future__ import annotations

import ctypes
import sys

import pytest

from exporter.config import TensorrtConfig
from exporter.engine import probe, require
from exporter.errors import EnvironmentLacking, MissingLibrary, NoGpu


def has_driver() -> bool:
    """Whether this machine has an NVIDIA driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.fixture
def bare_python(tmp_path):
    """An interpreter without any installed package."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    program.chmod(0o755)
    return str(program)


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
def test_a_machine_without_a_driver(bare_python):
    """All that is missing is named at once, with the help for each, and the first decides class, code and exit status."""
    support = probe(TensorrtConfig(python=bare_python))
    assert not support.available
    assert support.code == "E851"
    assert "libcuda.so.1 was not found" in support.missing
    assert "TensorRT: not installed" in support.missing
    assert "numpy" in support.missing
    assert "pip install 'exporter[tensorrt]'" in support.help
    assert support.python_version == ".".join(map(str, sys.version_info[:3]))
    with pytest.raises(NoGpu, match="cannot be built or run") as caught:
        require(TensorrtConfig(python=bare_python))
    assert caught.value.exit_status == 6
    assert caught.value.facts["missing"].count("\n") == 2


def test_an_interpreter_that_is_not_there():
    """A wrong ``[tensorrt] python`` is reported by the probe, and raised where the engine is required."""
    config = TensorrtConfig(python="/no/such/python")
    support = probe(config)
    assert (support.available, support.code) == (False, "E853")
    with pytest.raises(MissingLibrary) as caught:
        require(config)
    assert caught.value.facts["interpreter"] == "/no/such/python"


def test_everything_is_there(config, release):
    """With a driver, TensorRT and numpy the probe tells versions and the GPU (a stand-in for each, and it says so)."""
    support = require(config)
    assert support.available
    assert (support.missing, support.code) == ("", "")
    assert support.tensorrt_version.startswith(release.version)
    assert support.gpu == "No GPU (stand-in for tests)"
    assert support.compute_capability == "9.0"
    assert support.cuda_version == "12.6"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("FAKE_CUDA_INIT", "100", "error 100: CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected"),
        ("FAKE_CUDA_DEVICES", "0", "no GPU is visible to this process"),
    ],
)
def test_a_driver_without_a_device(config, monkeypatch, variable, value, words):
    """A driver that refuses, or hides every GPU, is reported in its own words."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(EnvironmentLacking) as caught:
        require(config)
    assert caught.value.code == "E851"
    assert words in caught.value.facts["missing"]


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("__version__ = '8.4.3.1'", "E856", "8.4.3.1"),
        ("__version__ = '12.0.0'", "E856", "12.0.0"),
        ("__version__ = 'unknown'", "E856", "unknown"),
        ("raise ImportError('libnvinfer.so.10: cannot open shared object file')", "E857", "libnvinfer.so.10"),
    ],
    ids=["too old", "too new", "no version", "broken"],
)
def test_a_tensorrt_that_cannot_be_used(tmp_path, source, code, words):
    """A version outside the range, or one that cannot be imported, is named with what was found."""
    from bindings import fake_driver

    (tmp_path / "site" / "tensorrt").mkdir(parents=True)
    (tmp_path / "site" / "tensorrt" / "__init__.py").write_text(source + "\n")
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={fake_driver()} PYTHONPATH={tmp_path / "site"} exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    with pytest.raises(EnvironmentLacking) as caught:
        require(TensorrtConfig(python=str(program)))
    assert caught.value.code == code
    assert words in caught.value.facts["missing"]
