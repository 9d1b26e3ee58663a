"""Samples: what the model is judged on, read from a ``.npz`` without pickle."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import SampleError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Samples", "read_samples"]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Recorded inputs by name, first axis samples, and labels where there are some."""

    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[Any] | None
    path: Path | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return min((len(a) for a in self.inputs.values()), default=0)

    def head(self, count: int) -> Samples:
        """Return the first ``count`` samples."""
        labels = None if self.labels is None else self.labels[:count]
        return Samples({name: a[:count] for name, a in self.inputs.items()}, labels, self.path)


def read_samples(path: Path, *, labels: str = "") -> Samples:
    """Read a ``.npz``: every array but ``labels`` is an input.

    Raises:
        SampleError: the file is missing, is no ``.npz``, holds objects, or its arrays disagree in length.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as err:
        raise SampleError("E601", "the file with the samples does not exist", facts={"file": path}) from err
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as err:
        facts = {"file": path, "found": err, "expected": "a .npz with one array per input, without pickled objects"}
        raise SampleError("E602", "the file with the samples cannot be read", facts=facts) from err
    truth = None
    if labels:
        if labels not in arrays:
            facts = {"file": path, "expected": labels, "found": ", ".join(arrays)}
            raise SampleError("E603", "the samples have no array with the labels", facts=facts)
        truth = arrays.pop(labels)
    if not arrays:
        raise SampleError("E604", "the file with the samples holds no input", facts={"file": path})
    lengths = {name: (len(a) if a.ndim else 0) for name, a in [*arrays.items(), *([(labels, truth)] if truth is not None else [])]}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        found = ", ".join(f"{name}: {n}" for name, n in lengths.items())
        raise SampleError("E605", "the arrays of the samples disagree in their number of samples", facts={"file": path, "found": found})
    return Samples(arrays, truth, path)
