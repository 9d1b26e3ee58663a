"""Opening a checkpoint: which container it is, by content, and then the container's own reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from exporter.artifacts import Checkpoint
from exporter.checkpoint.flax_msgpack import read_flax
from exporter.checkpoint.folder_kinds import open_folder
from exporter.checkpoint.hdf5_file import read_hdf5
from exporter.checkpoint.plain_pickle import read_pickle
from exporter.checkpoint.recognition import Container, recognise
from exporter.checkpoint.safetensors_file import read_safetensors
from exporter.checkpoint.safetensors_shards import read_shards
from exporter.checkpoint.tensorflow_bundle import read_bundle
from exporter.checkpoint.tensorflow_names import index_of_prefix
from exporter.checkpoint.torch_legacy import read_torch_legacy
from exporter.checkpoint.torch_tar import read_torch_tar
from exporter.checkpoint.zip_kinds import read_zip
from exporter.errors import CheckpointError
from exporter.locations import Location, RemotePath, location_of
from exporter.tensors.digests import object_digest
from exporter.tensors.sources import ByteSource, open_regular

__all__ = ["open_checkpoint"]

_READERS: dict[Container, Callable[[ByteSource, Location], Checkpoint]] = {
    Container.TORCH_ZIP: read_zip,
    Container.SAFETENSORS: read_safetensors,
    Container.TORCH_LEGACY: read_torch_legacy,
    Container.PICKLE: read_pickle,
    Container.SHARDS: read_shards,
    Container.TORCH_TAR: read_torch_tar,
    Container.HDF5: read_hdf5,
    Container.TENSORFLOW: read_bundle,
    Container.FLAX: read_flax,
}


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
        return open_folder(location)
    index = index_of_prefix(location)
    if index is not None:
        with open_regular(index) as file:
            return read_bundle(file, file.path, named=location)
    with open_regular(location) as file:
        if file.size_bytes == 0:
            raise CheckpointError("E106", "the checkpoint is empty", facts={"file": location, "found": "0 bytes"})
        opened = _READERS[recognise(file, file.path)](file, file.path)
    if opened.contents is None and isinstance(opened.path, RemotePath):
        return replace(opened, contents=object_digest(opened))
    return opened
