"""Opening a checkpoint: which container it is, by content, and then the container's own reader."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from exporter.artifacts import Checkpoint
from exporter.checkpoint.recognition import Container, recognise
from exporter.errors import CheckpointError
from exporter.locations import Location, RemotePath, location_of
from exporter.tensors.sources import ByteSource, open_regular

__all__ = ["open_checkpoint"]


_READERS = {
    Container.TORCH_ZIP: ("zip_kinds", "read_zip"),
    Container.SAFETENSORS: ("safetensors_file", "read_safetensors"),
    Container.TORCH_LEGACY: ("torch_legacy", "read_torch_legacy"),
    Container.PICKLE: ("plain_pickle", "read_pickle"),
    Container.SHARDS: ("safetensors_shards", "read_shards"),
    Container.TORCH_TAR: ("torch_tar", "read_torch_tar"),
    Container.HDF5: ("hdf5_file", "read_hdf5"),
    Container.TENSORFLOW: ("tensorflow_bundle", "read_bundle"),
    Container.FLAX: ("flax_msgpack", "read_flax"),
}
"""Container -> module and function that read it; a new container needs a line here and one in ``recognition.py``."""


def open_checkpoint(path: str | Location) -> Checkpoint:
    """Read the structure of the checkpoint at ``path``, which may be a URL; the bytes of its tensors are not touched.

    Nothing in the file is executed. A pickle that would call something outside what trainers write is opened all the same,
    with the calls listed in ``Checkpoint.calls``, so that it can be looked at; later stages refuse it.

    Raises:
        CheckpointError: E1xx: the file is missing, damaged, or no container that is read here; the message says what
            it looks like.
    """
    location = location_of(path)
    if isinstance(location, Path) and location.is_dir():
        from exporter.checkpoint.folder_kinds import open_folder

        return open_folder(location)
    if isinstance(location, Path) and not os.path.lexists(location):
        from exporter.checkpoint.tensorflow_bundle import read_bundle
        from exporter.checkpoint.tensorflow_names import index_of_prefix

        index = index_of_prefix(location)
        if index is not None:
            with open_regular(index) as file:
                return read_bundle(file, file.path, named=location)
    with open_regular(location) as file:
        if file.size_bytes == 0:
            raise CheckpointError("E106", "the checkpoint is empty", facts={"file": location, "found": "0 bytes"})
        opened = _reader_of(recognise(file, file.path))(file, file.path)
    if opened.contents is None and isinstance(opened.path, RemotePath):
        from exporter.tensors.digests import object_digest

        return replace(opened, contents=object_digest(opened))
    return opened


def _reader_of(container: Container) -> Callable[[ByteSource, Location], Checkpoint]:
    """Return the reader of a container; the others are not imported, so that looking into a file stays quick."""
    module, name = _READERS[container]
    reader: Callable[[ByteSource, Location], Checkpoint] = getattr(importlib.import_module(f"exporter.checkpoint.{module}"), name)
    return reader
