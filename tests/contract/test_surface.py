"""Every name that the worker uses of TensorRT exists in each release, where it is used."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

from exporter.trt_worker import serving

HERE = Path(__file__).parent
SOURCES = sorted(Path(serving.__path__[0]).glob("*.py"))

USED_ONLY_IN = {
    # name -> (first major, first major without), for what the code uses behind a check of the version
    "trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH": (8, 10),
    "trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED": (10, 99),
    "trt.IProgressMonitor": (10, 99),
    "trt.IProgressMonitor.__init__": (10, 99),
    "trt.TacticSource.CUBLAS": (8, 10),
    "trt.TacticSource.CUBLAS_LT": (8, 10),
    "trt.TacticSource.CUDNN": (8, 10),
}


def names_used(text: str) -> set[str]:
    """Return every chain ``trt.A.B`` in a source text."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        steps, inner = [], node
        while isinstance(inner, ast.Attribute):
            steps.append(inner.attr)
            inner = inner.value
        if steps and isinstance(inner, ast.Name) and inner.id == "trt":
            found.add(".".join(["trt", *reversed(steps)]))
        if steps and isinstance(inner, ast.Attribute):
            continue
        if steps and isinstance(node, ast.Attribute) and isinstance(inner, ast.Name) and inner.id == "self" and steps[-1] == "_trt":
            found.add(".".join(["trt", *reversed(steps[:-1])]))
    return {name for name in found if name != "trt"}


def missing(surroundings: Path, names: set[str]) -> list[str]:
    """Return those of ``names`` that the release's real bindings do not have."""
    script = """
import json, os, sys
sys.path.insert(0, os.environ["EXPORTER_CONTRACT_SITE"])
import tensorrt_bindings as trt
lacking = []
for name in json.loads(sys.argv[1]):
    here = trt
    for step in name.split(".")[1:]:
        here = getattr(here, step, None)
        if here is None:
            lacking.append(name)
            break
print(json.dumps(lacking))
"""
    done = subprocess.run([sys.executable, "-c", script, json.dumps(sorted(names))], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def expected(names: set[str], major: int) -> set[str]:
    """Return those of ``names`` that a major version has to have."""
    return {name for name in names if USED_ONLY_IN.get(name, (0, 99))[0] <= major < USED_ONLY_IN.get(name, (0, 99))[1]}


def test_every_name_that_is_used_exists(release, surroundings):
    """Every ``trt.A.B`` in the worker's sources exists in this release, or its use is behind a check of the version."""
    used = set().union(*(names_used(source.read_text()) for source in SOURCES))
    assert {"trt.BuilderFlag.TF32", "trt.Builder", "trt.Runtime", "trt.ProfilingVerbosity.NONE"} <= used  # the scan sees something
    assert set(USED_ONLY_IN) - {"trt.IProgressMonitor.__init__"} <= used
    assert missing(surroundings, expected(used, int(release.version.split(".")[0]))) == []


REMOVED = {  # a use -> the last major release that has it
    "config.set_flag(trt.BuilderFlag.FP16)": 10,
    "flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)": 10,
    "trt.TacticSource.CUDNN": 10,
    "self._trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS": 10,
    "trt.BuilderFlag.TF23": 0,
}


def test_the_scan_finds_what_a_release_does_not_have(release, surroundings):
    """A use of what a release has removed is found; this shows that the check can fail."""
    major = int(release.version.split(".")[0])
    lacking = set(missing(surroundings, set().union(*map(names_used, REMOVED))))
    assert {line for line in REMOVED if names_used(line) & lacking} == {line for line, last in REMOVED.items() if last < major}
