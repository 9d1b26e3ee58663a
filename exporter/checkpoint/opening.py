"""Opening a checkpoint: which container it is, by content, and then the container's own reader."""

from __future__ import annotations

import os
from pathlib import Path

from exporter.artifacts import Checkpoint
from exporter.checkpoint.recognition import Container, recognise
from exporter.checkpoint.safetensors_file import read_safetensors
from exporter.checkpoint.torch_zip import read_torch_zip
from exporter.errors import CheckpointError
from exporter.tensors.reading import open_regular

__all__ = ["open_checkpoint"]


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the structure of the checkpoint at ``path``; the bytes of its tensors are not touched.

    Nothing in the file is executed. A pickle that would call something outside what trainers write is opened all the same,
    with the calls listed in ``Checkpoint.calls``, so that it can be looked at; later stages refuse it.

    Raises:
        CheckpointError: E101 to E115: the file is missing, damaged, or no container that is read here; the message says what
            it looks like.
    """
    path = Path(path)
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise CheckpointError("E106", "the checkpoint is empty", facts={"file": path, "found": "0 bytes"})
        container = recognise(file, path)
        return read_safetensors(file, path) if container is Container.SAFETENSORS else read_torch_zip(file, path)
