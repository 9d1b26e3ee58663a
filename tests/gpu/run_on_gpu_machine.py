"""Everything that needs a GPU in one call, on a machine that has torch and cannot download anything.

    python tests/gpu/run_on_gpu_machine.py collect WHEELS        where there is a registry: the wheels that such a machine lacks
    python tests/gpu/run_on_gpu_machine.py run OUT [--wheels WHEELS] [--no-tests] [--minutes 9] [what bench/gpu.py takes: --networks digits,resnet50]

``run`` needs Python 3.10 to 3.13 with torch 2.11 or newer, onnx, onnxscript, numpy, scipy, safetensors, ml-dtypes and pytest. A
missing platformdirs is taken from WHEELS. It runs the tests marked ``gpu`` and then ``bench/gpu.py``, and leaves in OUT:
``pytest.txt``, ``junit.xml``, and per network and precision a page and the raw samples. ``EXPORTER_TENSORRT_PYTHON`` names an interpreter with
TensorRT. ``--minutes`` counts from the start, the tests included: the bench has what they leave.

What a machine lacks is skipped with its reason, in the tests and on the pages: with an ONNX Runtime built for the CPU its CUDA provider, without
TensorRT the engine. The exit status is pytest's, or that of the bench.
Standard library alone, so that it can say what is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("torch", "onnx", "onnxscript", "onnx_ir", "numpy", "scipy", "safetensors", "ml_dtypes", "typing_extensions", "pytest", "pytest_timeout")
CARRIED = ("platformdirs",)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def collect(wheels: Path, python: str) -> int:
    """Download the wheels of ``CARRIED`` and what they need, for another machine's Python."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    return subprocess.run([*command, "--dest", str(wheels), *CARRIED], check=False).returncode


def missing(names: tuple[str, ...]) -> list[str]:
    """Return those modules that this interpreter does not have."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def run(out: Path, wheels: Path | None, options: list[str], *, with_tests: bool, minutes: float) -> int:
    """Run tests and measurements; ``options`` are those of ``bench/gpu.py``."""
    start = time.monotonic()
    lacking = missing(NEEDED)
    if lacking:
        print(f"this interpreter ({sys.executable}) lacks {', '.join(lacking)}", file=sys.stderr)
        return 6
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    paths = [str(ROOT), environment.get("PYTHONPATH", "")]
    with tempfile.TemporaryDirectory() as folder:
        if missing(CARRIED):
            if wheels is None or not any(wheels.glob("*.whl")):
                print(f"{', '.join(missing(CARRIED))}: not installed; bring them: {sys.argv[0]} collect WHEELS, then --wheels", file=sys.stderr)
                return 6
            site = Path(folder) / "site"
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(site)]
            subprocess.run([*install, *(str(wheel) for wheel in sorted(wheels.glob("*.whl")))], check=True)
            paths.insert(1, str(site))
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        environment["EXPORTER_STATE_DIR"] = str(Path(folder) / "state")
        out.mkdir(parents=True, exist_ok=True)
        tests = [
            sys.executable,
            "-m",
            "pytest",
            "tests/gpu",
            "-m",
            "gpu",
            "-rs",
            "-p",
            "no:cacheprovider",
            "-W",
            "default",
            f"--junitxml={out / 'junit.xml'}",
        ]
        tested = 0
        if with_tests:
            with (out / "pytest.txt").open("w", encoding="utf-8") as log:
                tested = subprocess.run(tests, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
            print((out / "pytest.txt").read_text(encoding="utf-8")[-6000:], flush=True)
        left = minutes - (time.monotonic() - start) / 60
        bench = [sys.executable, "bench/gpu.py", str(out.absolute()), "--minutes", f"{left:.2f}", *options]
        measured = subprocess.run(bench, cwd=ROOT, env=environment, check=False).returncode
    return tested or measured


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    collecting = verbs.add_parser("collect", help="download the wheels that are carried")
    collecting.add_argument("wheels", type=Path)
    collecting.add_argument("--python", default="3.12", help="Python of the other machine")
    running = verbs.add_parser("run", help="run the tests and measure")
    running.add_argument("out", type=Path)
    running.add_argument("--wheels", type=Path)
    running.add_argument("--no-tests", action="store_true", help="measure only")
    running.add_argument("--minutes", type=float, default=float("inf"), help="for tests and measurements; nothing is begun after them")
    arguments, options = parser.parse_known_args()
    if arguments.verb == "collect":
        if options:
            parser.error(f"unknown: {' '.join(options)}")
        return collect(arguments.wheels, arguments.python)
    return run(arguments.out.absolute(), arguments.wheels, options, with_tests=not arguments.no_tests, minutes=arguments.minutes)


if __name__ == "__main__":
    raise SystemExit(main())
