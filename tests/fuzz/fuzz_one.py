"""Fuzzes one target with Atheris: ``python tests/fuzz/fuzz_one.py TARGET WORK [libFuzzer options] CORPUS SEEDS``."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import atheris
import ml_dtypes  # noqa: F401 - not instrumented
import numpy as np  # noqa: F401 - not instrumented, and its import sets variables

with atheris.instrument_imports(include=["exporter"]):
    import exporter.cli.inspect
    import exporter.weights.baking
    import exporter.weights.streaming  # noqa: F401 - instrumented, as all of the package

from exporter.records import _signature
from tests.fuzz.listing import fork_listings
from tests.fuzz.mutation import Mutator
from tests.fuzz.targets import TARGETS, check

TARGET = next(target for target in TARGETS if target.name == sys.argv[1])
WORK = Path(sys.argv[2])
MUTATOR = Mutator(lambda raw, _: bytes(atheris.Mutate(bytes(raw), len(raw) + 64)))


def test_one_input(data: bytes) -> None:
    """Check one input; whatever is raised is a finding."""
    check(TARGET, data, WORK)


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Return another input; Atheris' own mutation takes the bytes that are nothing known."""
    return MUTATOR(data, random.Random(seed))[:max_size]


def main() -> None:
    """Run until the time is up or something is found."""
    WORK.mkdir(parents=True, exist_ok=True)
    os.environ["EXPORTER_STATE_DIR"] = str(WORK.parent / "state")
    os.chdir(WORK.parent)
    _signature({})  # makes the secret, once
    if TARGET.name == "HDF5":
        fork_listings()
    for seed in sorted(Path(sys.argv[-1]).iterdir()):  # lazy imports happen now, and not where files are watched
        if seed.name.startswith(TARGET.seeds):
            check(TARGET, seed.read_bytes(), WORK, watch=False)
    atheris.Setup([sys.argv[0], *sys.argv[3:-1]], test_one_input, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
