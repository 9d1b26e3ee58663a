"""Opening a checkpoint that is a folder: which kind it is, by the files in it."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from exporter.artifacts import Checkpoint
from exporter.checkpoint.distributed import METADATA, read_distributed
from exporter.errors import CheckpointError

__all__ = ["open_folder"]

_MAX_NAMES = 8


def open_folder(folder: Path) -> Checkpoint:
    """Read the structure of the checkpoint in ``folder``.

    Raises:
        CheckpointError: it is no folder of a known kind (E102), or what its reader raises.
    """
    if os.path.lexists(folder / METADATA):
        return read_distributed(folder)
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in itertools.islice(entries, 1000)]
    except OSError as err:
        raise CheckpointError("E103", "the checkpoint cannot be read", facts={"file": folder, "found": err.strerror or err}) from err
    found = ", ".join(sorted(names)[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")
    facts = {
        "file": folder,
        "found": f"a folder with {found}" if names else "an empty folder",
        "expected": f"one file, or a folder of torch.distributed.checkpoint (with {METADATA})",
    }
    help_text = "saved without coordination: load it with torch.distributed.checkpoint and save it again" if f"__0{METADATA}" in names else ""
    raise CheckpointError("E102", "the checkpoint is not a regular file", facts=facts, help=help_text)
