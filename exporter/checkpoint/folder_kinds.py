"""Opening a checkpoint that is a folder: which kind it is, by the files in it."""

from __future__ import annotations

from pathlib import Path

from exporter.artifacts import Checkpoint
from exporter.checkpoint.deepspeed import LATEST, is_deepspeed, read_deepspeed
from exporter.checkpoint.diffusers_folder import is_saved_model, pair_in, read_pair, read_saved_model
from exporter.checkpoint.distributed import METADATA, read_distributed
from exporter.checkpoint.folders import list_names
from exporter.checkpoint.safetensors_shards import find_index, read_shards
from exporter.checkpoint.tensorflow_bundle import INDEX_SUFFIX
from exporter.checkpoint.tensorflow_names import STATE_FILE, read_latest
from exporter.errors import CheckpointError
from exporter.tensors.sources import open_regular

__all__ = ["open_folder"]

_ORBAX = frozenset({"_CHECKPOINT_METADATA", "manifest.ocdbt"})
_REMEDIES = {
    f"__0{METADATA}": "saved without coordination: load it with torch.distributed.checkpoint and save it again",
    "saved_model.pb": "a SavedModel: its weights are in the folder variables of it, which can be named",
}
_MAX_NAMES_SHOWN = 8


def open_folder(folder: Path) -> Checkpoint:
    """Read the structure of the checkpoint in ``folder``.

    Raises:
        CheckpointError: it is no folder of a known kind (E102), or what its reader raises.
    """
    names = list_names(folder)
    if METADATA in names:
        return read_distributed(folder)
    if is_deepspeed(names):
        return read_deepspeed(folder, names)
    index = find_index(folder, names)
    if index is not None:
        with open_regular(index) as file:
            return read_shards(file, index)
    if is_saved_model(names):
        return read_saved_model(folder)
    pair = pair_in(folder, names)
    if pair:
        return read_pair(folder, pair)
    if STATE_FILE in names or sum(name.endswith(INDEX_SUFFIX) for name in names) == 1:
        return read_latest(folder, names)
    if names & _ORBAX:
        facts: dict[str, object] = {"file": folder, "found": ", ".join(sorted(names & _ORBAX))}
        help_text = "restore it with orbax.checkpoint and write flax.serialization.to_bytes(tree) to a file: that is read"
        raise CheckpointError("E145", "the folder is a checkpoint of Orbax, which is not read", facts=facts, help=help_text)
    shown = ", ".join(sorted(names)[:_MAX_NAMES_SHOWN]) + (", ..." if len(names) > _MAX_NAMES_SHOWN else "")
    facts = {
        "file": folder,
        "found": f"a folder with {shown}" if names else "an empty folder",
        "expected": f"one file, or a folder of torch.distributed.checkpoint (with {METADATA}) or DeepSpeed (with {LATEST}), ...",
    }
    help_text = next((remedy for name, remedy in _REMEDIES.items() if name in names), "")
    raise CheckpointError("E102", "the checkpoint is not a regular file", facts=facts, help=help_text)
