"""Folders that diffusers' ``save_pretrained`` writes: ``config.json`` beside ``diffusion_pytorch_model.safetensors``, whole or in shards.

One such folder is ``{config, state_dict}``. A folder that holds the pair ``<name>`` and ``<name>_ema``, as its training scripts leave
it in ``checkpoint-N``, is a mapping of the two names.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from exporter.artifacts import Checkpoint, Node
from exporter.checkpoint.folders import list_names, open_member
from exporter.checkpoint.safetensors_file import read_safetensors
from exporter.checkpoint.safetensors_shards import INDEX_SUFFIX, read_shards
from exporter.errors import CheckpointError

__all__ = ["is_saved_model", "pair_in", "read_pair", "read_saved_model"]

CONFIG, WEIGHTS, INDEX = "config.json", "diffusion_pytorch_model.safetensors", f"diffusion_pytorch_model{INDEX_SUFFIX}"
MAX_CONFIG_BYTES = 1 << 20
_SUFFIX = "_ema"


def is_saved_model(names: Collection[str]) -> bool:
    """Return whether a folder with these entries is one of ``save_pretrained``."""
    return CONFIG in names and (WEIGHTS in names or INDEX in names)


def pair_in(folder: Path, names: Collection[str]) -> str:
    """Return the name of the model whose average stands beside it in ``<name>_ema``, empty where there is none.

    Raises:
        CheckpointError: there are several (E261).
    """
    found = [
        name.removesuffix(_SUFFIX)
        for name in sorted(names)
        if name.endswith(_SUFFIX) and name.removesuffix(_SUFFIX) in names and (folder / name).is_dir() and is_saved_model(list_names(folder / name))
    ]
    if len(found) > 1:
        facts = {"file": folder, "found": ", ".join(f"{name}{_SUFFIX}" for name in found[:8])}
        raise CheckpointError("E261", "the folder holds averages of several models", facts=facts, help=f"name one: {folder / found[0]}{_SUFFIX}")
    return found[0] if found else ""


def read_pair(folder: Path, name: str) -> Checkpoint:
    """Return the model ``name`` in ``folder`` and its average as one checkpoint.

    Raises:
        CheckpointError: what reading either of them raises.
    """
    average = read_saved_model(folder / f"{name}{_SUFFIX}")
    raw = [read_saved_model(folder / name)] if (folder / name).is_dir() and is_saved_model(list_names(folder / name)) else []
    parts = [*raw, average]
    root: dict[str, Node] = {part.path.name: part.root for part in parts}
    files = tuple(path for part in parts for path in part.files)
    size = sum(part.size_bytes for part in parts)
    return replace(average, path=folder, container="diffusers folders", root=root, files=files, size_bytes=size)


def read_saved_model(folder: Path) -> Checkpoint:
    """Return the checkpoint in one folder of ``save_pretrained``.

    Raises:
        CheckpointError: ``config.json`` is no table (E262), or what the reader of the weights raises.
    """
    with open_member(folder, CONFIG) as file:
        content = file.read(min(file.size_bytes, MAX_CONFIG_BYTES + 1), 0)
    try:
        config = json.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as err:
        raise _no_table(folder, f"text that is no JSON ({type(err).__name__})") from err
    if not isinstance(config, dict) or len(content) > MAX_CONFIG_BYTES:
        raise _no_table(folder, f"{len(content)} bytes, a {type(config).__name__}")
    plain = {key: value for key, value in config.items() if value is None or isinstance(value, (bool, int, float, str))}
    if WEIGHTS in list_names(folder):
        with open_member(folder, WEIGHTS) as weights:
            state = read_safetensors(weights, folder / WEIGHTS)
    else:
        with open_member(folder, INDEX) as weights:
            state = read_shards(weights, folder / INDEX)
    files = (folder / CONFIG, *(state.files or (folder / WEIGHTS,)))
    root: dict[str, Node] = {"config": plain, "state_dict": state.root}
    return replace(state, path=folder, container="diffusers folder", root=root, files=files, size_bytes=state.size_bytes + len(content))


def _no_table(folder: Path, found: str) -> CheckpointError:
    facts = {"file": folder / CONFIG, "found": found, "expected": "the configuration that save_pretrained writes"}
    return CheckpointError("E262", "the configuration beside the weights cannot be read", facts=facts)
