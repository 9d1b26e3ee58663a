"""Files of a checkpoint that is a folder: each is named plainly, stands in that folder, and is no link to elsewhere."""

from __future__ import annotations

import itertools
import os
import stat
from pathlib import Path

from exporter.artifacts import Node
from exporter.errors import CheckpointError
from exporter.tensors.sources import ByteSource, open_regular

__all__ = ["is_plain_name", "list_names", "open_member"]

_MAX_NAMES = 100_000
"""Of a folder are looked at; there are not more files than processes and layers."""


def is_plain_name(name: Node) -> bool:
    """Return whether ``name`` names a file right in its folder: one printable step, neither absolute nor escaping."""
    return isinstance(name, str) and 0 < len(name) <= 255 and name.isprintable() and name not in {".", ".."} and not {"/", "\\"} & set(name)


def list_names(folder: Path) -> set[str]:
    """Return the names in ``folder``.

    Raises:
        CheckpointError: it cannot be read (E103).
    """
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in itertools.islice(entries, _MAX_NAMES)}
    except OSError as err:
        raise CheckpointError("E103", "the checkpoint cannot be read", facts={"file": folder, "found": err.strerror or err}) from err


def open_member(folder: Path, name: str) -> ByteSource:
    """Open the file ``name`` of the checkpoint in ``folder``.

    Raises:
        CheckpointError: the name leads out of the folder (E116), or the file is missing (E101), no regular file (E102) or cannot
            be read (E103).
    """
    if not is_plain_name(name):
        facts = {"file": folder, "found": repr(name)[:120], "expected": "the name of a file in the same folder"}
        raise CheckpointError("E116", "the checkpoint leads to a file outside its folder", facts=facts)
    path = folder / name
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        mode = 0  # opening it says what is wrong
    if stat.S_ISLNK(mode):
        facts = {"file": path, "found": "a symbolic link", "expected": "a regular file"}
        raise CheckpointError("E116", "the checkpoint leads to a file outside its folder", facts=facts)
    return open_regular(path)
