"""What a user may name of a TensorFlow checkpoint beside its index: the prefix of its files, or a folder with the state file."""

from __future__ import annotations

import os
import re
from pathlib import Path

from exporter.artifacts import Checkpoint
from exporter.checkpoint.folders import is_plain_name, open_member
from exporter.checkpoint.tensorflow_bundle import INDEX_SUFFIX, read_bundle
from exporter.errors import CheckpointError
from exporter.locations import Location
from exporter.tensors.sources import open_regular

__all__ = ["STATE_FILE", "index_of_prefix", "read_latest"]

STATE_FILE = "checkpoint"
"""In the folder of a Saver or CheckpointManager: text that names the newest checkpoint."""

_LATEST = re.compile(rb'^model_checkpoint_path: "([^"\\\n]*)"$', re.MULTILINE)
_MAX_STATE_BYTES = 1 << 20


def index_of_prefix(path: Location) -> Path | None:
    """Return the index of the checkpoint whose files begin with ``path``, None where ``path`` is a file or there is no index."""
    if not isinstance(path, Path):
        return None
    index = path.with_name(path.name + INDEX_SUFFIX) if path.name else path
    return index if not os.path.lexists(path) and index.exists() else None


def read_latest(folder: Path, names: set[str]) -> Checkpoint:
    """Return the checkpoint that the state file of ``folder`` calls the newest, or the only one where there is no state file.

    Of a path only the last step is used: a folder that was moved is read where it is, and nothing outside it.

    Args:
        folder: of the checkpoint.
        names: of the files in it.

    Raises:
        CheckpointError: the state file names no checkpoint of this folder (E143), or what ``read_bundle`` raises.
    """
    name = _latest(folder) if STATE_FILE in names else next(name for name in names if name.endswith(INDEX_SUFFIX))
    index = folder / name
    with open_regular(index) as file:
        return read_bundle(file, index, named=folder)


def _latest(folder: Path) -> str:
    with open_member(folder, STATE_FILE) as file:
        state = file.read(_MAX_STATE_BYTES, 0)
    match = _LATEST.search(state)
    name = match[1].decode("utf-8", "replace").rpartition("/")[2] + INDEX_SUFFIX if match else ""
    if not is_plain_name(name) or not (folder / name).exists():
        facts = {"file": folder / STATE_FILE, "found": name or state[:80], "expected": f"model_checkpoint_path, with a file NAME{INDEX_SUFFIX} here"}
        raise CheckpointError("E143", "the state file names no checkpoint of its folder", facts=facts, help="name the .index file itself")
    return name
