"""Train the digits fixture again and compare it with the committed one.

    python tests/project/compare_fixtures.py             compare
    python tests/project/compare_fixtures.py --update    keep the new one, if it differs

The samples must be the same numbers. The tensors must have the same names, shapes and dtypes; their values are the same bits on the
same kind of processor and the same torch, and elsewhere rounding grows over the training steps. So where bits differ, the raw
and the averaged weights must still lie close to the committed ones.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.artifacts import TensorRef, walk
from exporter.checkpoint import open_checkpoint
from exporter.tensors import read_tensor

__all__ = ["differences", "main"]

ROOT = Path(__file__).resolve().parent.parent.parent
COMMITTED = ROOT / "fixtures" / "digits"
ALLOWED_DRIFT = 0.1
"""Relative L2 distance of all floating tensors of one copy of the weights together."""


def differences(new: Path, old: Path) -> tuple[list[str], bool]:
    """Return what is wrong with the fixture in ``new`` against the one in ``old``, and whether both are the same bits."""
    faults = []
    with np.load(new / "samples.npz") as ours, np.load(old / "samples.npz") as theirs:
        if sorted(ours.files) != sorted(theirs.files) or any(not np.array_equal(ours[name], theirs[name]) for name in theirs.files):
            faults.append("the samples differ")
    first, second = _tensors(new / "digits.pt"), _tensors(old / "digits.pt")
    if {name: (a.shape, a.dtype) for name, a in first.items()} != {name: (a.shape, a.dtype) for name, a in second.items()}:
        return [*faults, "names, shapes or dtypes of the tensors differ"], False
    is_same = all(a.tobytes() == second[name].tobytes() for name, a in first.items())
    for part in ("model/", "model_ema/"):
        names = [name for name, a in second.items() if name.startswith(part) and a.dtype.kind == "f"]
        distance = np.sqrt(sum(float(np.square(first[name] - second[name], dtype=np.float64).sum()) for name in names))
        norm = np.sqrt(sum(float(np.square(second[name], dtype=np.float64).sum()) for name in names))
        print(f"{part:<10} {len(names)} tensors, relative L2 distance {distance / norm:.2e}")
        if not distance <= ALLOWED_DRIFT * norm:
            faults.append(f"{part} lies {distance / norm:.2e} from the committed one, at most {ALLOWED_DRIFT}")
    return faults, is_same


def _tensors(path: Path) -> dict[str, NDArray[Any]]:
    return {at: read_tensor(node) for at, node in walk(open_checkpoint(path).root) if isinstance(node, TensorRef)}


def main(arguments: list[str]) -> int:
    """Train, compare, and return the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(ROOT / "fixtures" / "make_fixtures.py"), folder], check=True)
        faults, is_same = differences(Path(folder), COMMITTED)
        for fault in faults:
            print(f"fault: {fault}")
        print("the same bits" if is_same else "other bits")
        if "--update" in arguments and not is_same:
            for name in ("digits.pt", "samples.npz"):
                shutil.copyfile(Path(folder) / name, COMMITTED / name)
            print(f"kept in {COMMITTED}")
            return 0
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
