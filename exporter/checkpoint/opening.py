"""Opening a checkpoint: which container it is, by content, and then the container's own reader."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from exporter.artifacts import Checkpoint
from exporter.checkpoint.folder_kinds import open_folder
from exporter.checkpoint.hdf5_file import read_hdf5
from exporter.checkpoint.plain_pickle import read_pickle
from exporter.checkpoint.recognition import Container, recognise
from exporter.checkpoint.safetensors_file import read_safetensors
from exporter.checkpoint.safetensors_shards import read_shards
from exporter.checkpoint.torch_legacy import read_torch_legacy
from exporter.checkpoint.torch_tar import read_torch_tar
from exporter.checkpoint.zip_kinds import read_zip
from exporter.errors import CheckpointError
from exporter.tensors.reading import open_regular

__all__ = ["open_checkpoint"]

_READERS: dict[Container, Callable[[BinaryIO, Path], Checkpoint]] = {
    Container.TORCH_ZIP: read_zip,
    Container.SAFETENSORS: read_safetensors,
    Container.TORCH_LEGACY: read_torch_legacy,
    Container.PICKLE: read_pickle,
    Container.SHARDS: read_shards,
    Container.TORCH_TAR: read_torch_tar,
    Container.HDF5: read_hdf5,
}


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the structure of the checkpoint at ``path``; the bytes of its tensors are not touched.

    Nothing in the file is executed. A pickle that would call something outside what trainers write is opened all the same,
    with the calls listed in ``Checkpoint.calls``, so that it can be looked at; later stages refuse it.

    Raises:
        CheckpointError: E1xx: the file is missing, damaged, or no container that is read here; the message says what
            it looks like.
    """
    path = Path(path)
    if path.is_dir():
        return open_folder(path)
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise CheckpointError("E106", "the checkpoint is empty", facts={"file": path, "found": "0 bytes"})
        return _READERS[recognise(file, path)](file, path)
