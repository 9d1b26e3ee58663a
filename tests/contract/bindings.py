"""Real TensorRT bindings on a machine without TensorRT: the wheel of the bindings alone, and stub libraries in place of the rest.

The wheels are under NVIDIA's licence: they are downloaded into a cache folder outside the repository (``EXPORTER_CONTRACT_CACHE``,
by default in the user's cache folder) and never committed. The stubs export the few C symbols that the bindings import and return
null; they must never come near a machine with a GPU.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
import pytest
from releases import Release

LARGE = os.environ.get("EXPORTER_CONTRACT_LARGE") == "1"
REQUIRED = os.environ.get("EXPORTER_REQUIRE_CONTRACT") == "1"
CACHE = Path(os.environ.get("EXPORTER_CONTRACT_CACHE") or Path(platformdirs.user_cache_dir("exporter")) / "contract")
PIP_DOWNLOAD = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "30", "--no-deps")
"""Gives up soon where there is no registry."""

_NUMPY = "numpy==1.26.4"  # what an interpreter of its own gets; TensorRT 8 is older than NumPy 2
_OFFLINE: list[str] = []


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Make something in the cache folder while no other process makes it; who waited finds it there."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def lacking(reason: str):
    """Skip with ``reason``, or fail where the contract is required."""
    if REQUIRED:
        pytest.fail(f"EXPORTER_REQUIRE_CONTRACT=1, and {reason}", pytrace=False)
    pytest.skip(reason)


def compiler() -> str:
    """Return a C compiler."""
    found = shutil.which("gcc") or shutil.which("cc")
    return found or lacking("there is no C compiler for the stub libraries")


def compile_library(source: Path, target: Path, *, soname: str) -> None:
    """Compile a shared library, whole or not at all."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    subprocess.run([compiler(), "-O1", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", str(temporary), str(source)], check=True)
    temporary.replace(target)


def fake_driver() -> Path:
    """Return a folder with the stand-in for the driver."""
    source = Path(__file__).parent / "fake_driver.c"
    folder = CACHE / f"driver-{abs(hash_of(source)):x}"
    with alone(folder.name):
        folder.mkdir(exist_ok=True)
        if not (folder / "libcuda.so.1").exists():
            compile_library(source, folder / "libcuda.so.1", soname="libcuda.so.1")
    return folder


def hash_of(path: Path) -> int:
    """Return a short sum over a file, for the name of a cache folder."""
    import zlib

    return zlib.crc32(path.read_bytes())


def minor_for(release: Release) -> int:
    """Return the minor version of the CPython 3 that the release is used with: this one where that is possible."""
    return sys.version_info.minor if release.first_python <= sys.version_info.minor <= release.last_python else release.last_python


def interpreter(release: Release) -> str:
    """Return an interpreter for which there are bindings of the release: this one, or an older one with NumPy."""
    if release.is_large and not LARGE:
        pytest.skip(f"TensorRT {release} comes in one package of half a gigabyte: EXPORTER_CONTRACT_LARGE=1, or tox -e tensorrt-8")
    if minor_for(release) == sys.version_info.minor:
        return sys.executable
    if not LARGE:
        pytest.skip(f"TensorRT {release} has no bindings for Python 3.{sys.version_info.minor} (3.{release.first_python} to 3.{release.last_python})")
    return str(environment_of(minor_for(release), f"numpy-3.{minor_for(release)}", (_NUMPY,)))


def environment_of(minor: int, name: str, requirements: tuple[str, ...]) -> Path:
    """Return the interpreter of an environment in the cache folder, made once."""
    folder = CACHE / name
    python = folder / "bin" / "python"
    with alone(name):
        if (folder / "complete").exists():
            return python
        base = shutil.which(f"python3.{minor}")
        if base is None or subprocess.run([base, "-c", ""], capture_output=True, check=False).returncode:
            pytest.skip(f"Python 3.{minor} is missing: there are no packages of this TensorRT for Python 3.{sys.version_info.minor}")
        subprocess.run([base, "-m", "venv", "--clear", str(folder)], check=True, capture_output=True)
        command = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-cache-dir",
            "--only-binary=:all:",
            *requirements,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lacking(f"{', '.join(requirements)} could not be installed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        (folder / "complete").touch()
    return python


def fetch(release: Release) -> Path:
    """Return a folder with ``site`` (the package ``tensorrt_bindings``) and ``stubs``."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("the bindings are fetched for Linux on x86-64 alone")
    interpreter(release)
    compiler()
    folder = CACHE / f"{release.version}-cp3{minor_for(release)}"
    with alone(folder.name):
        if not (folder / "complete").exists():
            wheel = download(release, CACHE / "wheels")
            shutil.rmtree(folder, ignore_errors=True)
            unpack(release, wheel, folder / "site")
            make_stubs(folder)
            (folder / "complete").touch()
    return folder


def unpack(release: Release, wheel: Path, site: Path) -> None:
    """Unpack the bindings; of a package with all of TensorRT, the bindings alone, under the name that other releases have."""
    with zipfile.ZipFile(wheel) as archive:
        if not release.is_large:
            archive.extractall(site)
            return
        package = site / "tensorrt_bindings"
        package.mkdir(parents=True)
        (package / "tensorrt.so").write_bytes(archive.read("tensorrt/tensorrt.so"))
        (package / "__init__.py").write_text(f'from tensorrt_bindings.tensorrt import *\n\n__version__ = "{release.version}"\n')
    wheel.unlink()


def download(release: Release, into: Path) -> Path:
    """Return the wheel of the bindings, from the cache folder or the registry."""
    into.mkdir(parents=True, exist_ok=True)
    name, _, version = release.package.partition("==")
    tag = f"cp3{minor_for(release)}"
    pattern = f"{name.replace('-', '_')}-{version}-{tag}-*.whl"
    if not any(into.glob(pattern)):
        if _OFFLINE:
            lacking(_OFFLINE[0])
        command = [
            *PIP_DOWNLOAD,
            "--only-binary=:all:",
            "--python-version",
            f"3.{minor_for(release)}",
            "--implementation",
            "cp",
            "--abi",
            tag,
            "--abi",
            "none",
        ]
        command += ["--dest", str(into)]
        for platform_tag in ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux_2_31_x86_64"):
            command += ["--platform", platform_tag]
        done = subprocess.run([*command, release.package], capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            reason = f"the bindings {release.package} could not be downloaded: {last}"
            if "No matching distribution" not in done.stderr or "from versions: none" in done.stderr:
                _OFFLINE.append(reason)
            lacking(reason)
    return next(into.glob(pattern))


def make_stubs(folder: Path) -> None:
    """Compile libraries that export what the bindings import."""
    library = next((folder / "site" / "tensorrt_bindings").glob("tensorrt*.so"))
    stubs = folder / "stubs"
    stubs.mkdir()
    needed = re.findall(r"\[(libnv\w+\.so\.\d+)\]", _output("readelf", "-d", str(library)))
    undefined = _output("nm", "-D", "--undefined-only", str(library)).split()
    wanted = [
        name
        for name in undefined
        if re.search(r"_INTERNAL$|PluginRegistry$|getNvOnnxParserVersion|initLibNvInferPlugins|nvuffparser|nvcaffeparser", name)
    ]
    source = stubs / "stubs.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in wanted))
    empty = stubs / "empty.c"
    empty.write_text("typedef int nothing;\n")
    for name in needed:
        compile_library(source if name.startswith("libnvinfer.so") else empty, stubs / name, soname=name)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def stand_in_python(release: Release, folder: Path) -> Path:
    """Return an interpreter (a script in ``folder``) in which ``tensorrt`` is the stand-in on the release's real bindings."""
    here = Path(__file__).parent
    fetched = fetch(release)
    script = folder / f"python-{release}"
    script.write_text(
        "#!/bin/sh\n"
        f"export LD_LIBRARY_PATH={fetched / 'stubs'}:{fake_driver()}\n"
        f"export PYTHONPATH={here / 'stand_in'}:{here}:{fetched / 'site'}\n"
        f'exec {interpreter(release)} "$@"\n'
    )
    script.chmod(0o755)
    return script
