"""A plain pickle as a checkpoint: the tree, with torch tensors and NumPy arrays as ranges of the file."""

from __future__ import annotations

from exporter.artifacts import Checkpoint
from exporter.checkpoint.pickle_arrays import PlainUnpickler
from exporter.checkpoint.pickle_calls import locate_calls
from exporter.checkpoint.pickle_meanings import MalformedPickle
from exporter.checkpoint.pickle_stream import PickleStream
from exporter.checkpoint.torch_legacy import refused
from exporter.locations import Location
from exporter.tensors.sources import ByteSource

__all__ = ["read_pickle"]


def read_pickle(file: ByteSource, path: Location) -> Checkpoint:
    """Return the checkpoint in the open file, which is one pickle from its first to its last byte.

    Raises:
        CheckpointError: E110 to E113 or E131, saying at which byte.
    """
    stream = PickleStream(file, path)
    unpickler = PlainUnpickler(stream)
    try:
        tree = unpickler.load()
        stream.check_end()
        calls = locate_calls(tree, unpickler.calls)
    except MalformedPickle as err:
        raise refused(err, path, unpickler.position) from err
    return Checkpoint(path, "pickle", file.size_bytes, tree, tuple(unpickler.globals), calls)
