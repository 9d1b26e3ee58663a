"""Folders of torch.distributed.checkpoint: written by torch in one process, cut into shards, and tampered with."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata

__all__ = ["load", "rewrite", "save", "save_shards"]


def save(content: dict[str, Any], folder: Path) -> Path:
    """Let torch save ``content`` in this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch remarks that there is no process group
        dcp.save(content, checkpoint_id=folder, no_dist=True)
    return folder


def load(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Let torch load ``folder`` into the tensors of ``content``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(content, checkpoint_id=folder, no_dist=True)
    return content


def rewrite(folder: Path, edit: Callable[[Metadata], None]) -> Path:
    """Change the metadata of a folder that torch wrote."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    edit(metadata)
    path.write_bytes(pickle.dumps(metadata))
    return folder


def save_shards(name: str, whole: torch.Tensor, boxes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], folder: Path) -> Path:
    """Save the boxes of ``whole``, each given as beginning and sizes, as the shards of one tensor called ``name``."""
    parts = {f"{i}": whole[tuple(slice(b, b + s) for b, s in zip(*box, strict=True))].clone() for i, box in enumerate(boxes)}
    save(parts, folder)

    def merge(metadata: Metadata) -> None:
        first = metadata.state_dict_metadata["0"]
        chunks = [ChunkStorageMetadata(torch.Size(begin), torch.Size(sizes)) for begin, sizes in boxes]
        metadata.state_dict_metadata = {name: TensorStorageMetadata(first.properties, whole.shape, chunks)}
        stored = {index.fqn: info for index, info in metadata.storage_data.items()}
        metadata.storage_data = {MetadataIndex(name, begin): stored[str(i)] for i, (begin, _) in enumerate(boxes)}
        metadata.planner_data = {name: (name,)}

    return rewrite(folder, merge)
