"""A zip file: which of torch's three forms it is, by its members, and then that form's reader."""

from __future__ import annotations

from exporter.artifacts import Checkpoint
from exporter.checkpoint.zip_directory import Window, read_directory
from exporter.errors import CheckpointError
from exporter.locations import Location
from exporter.tensors.sources import ByteSource

__all__ = ["read_zip"]

_KERAS_WEIGHTS = "model.weights.h5"


def read_zip(file: ByteSource, path: Location) -> Checkpoint:
    """Return the checkpoint in the open zip file.

    Raises:
        CheckpointError: E105, E107 to E115 or E134.
    """
    window = Window.of(file)
    members = read_directory(window, path, compressed_code=True)
    roots = {name.partition("/")[0] for name in members}
    root = next(iter(roots))
    if len(roots) == 1 and f"{root}/archive_format" in members:
        from exporter.checkpoint.exported_program import read_exported_program

        return read_exported_program(window, members, root, path)
    if len(roots) == 1 and f"{root}/constants.pkl" in members:
        from exporter.checkpoint.torchscript import read_torchscript

        return read_torchscript(window, members, root, path)
    compressed = [name for name, member in members.items() if member.inflated_bytes is not None]
    if compressed:
        facts = {"file": path, "found": f"the compressed member {compressed[0]!r}; torch stores its members as they are"}
        raise CheckpointError("E107", "the zip archive of the checkpoint is damaged or was tampered with", facts=facts)
    if _KERAS_WEIGHTS in members:
        from exporter.checkpoint.hdf5_file import read_keras_zip

        return read_keras_zip(file, path, members, members[_KERAS_WEIGHTS])
    from exporter.checkpoint.torch_zip import read_torch_zip

    return read_torch_zip(file, path, members)
