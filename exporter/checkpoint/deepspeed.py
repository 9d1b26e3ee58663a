"""A folder of DeepSpeed as a checkpoint: ``latest`` names a tag, and ``<tag>/mp_rank_00_model_states.pt`` holds the model whole.

So it is with ZeRO 1 and 2, which share out the optimizer alone (``zero_pp_rank_*_optim_states.pt``, not read). ZeRO 3, model and
pipeline parallelism share out the weights themselves, in forms that only the training code can undo.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import replace
from pathlib import Path

from exporter.artifacts import Checkpoint
from exporter.checkpoint.folders import is_plain_name, list_names, open_member
from exporter.checkpoint.torch_zip import read_torch_zip
from exporter.errors import CheckpointError

__all__ = ["LATEST", "is_deepspeed", "read_deepspeed"]

LATEST = "latest"
_MODEL = re.compile(r"mp_rank_\d+_model_states\.pt")
_ZERO3 = re.compile(r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
_EXPERT = re.compile(r".*expert_\d+_mp_rank_\d+_model_states\.pt")
_PIPELINE = re.compile(r"layer_\d+-model_.*model_states\.pt")
_MAX_TAG_BYTES = 255


def is_deepspeed(names: set[str]) -> bool:
    """Return whether a folder with these entries is one of DeepSpeed: the folder of all tags, or that of one tag."""
    return LATEST in names or any(pattern.fullmatch(name) for name in names for pattern in (_MODEL, _ZERO3, _PIPELINE))


def read_deepspeed(folder: Path, names: set[str]) -> Checkpoint:
    """Return the checkpoint in ``folder`` with the entries ``names``: it holds ``latest``, or is the folder of one tag.

    Raises:
        CheckpointError: ``latest`` names no folder beside it (E116, E118), the weights are shared out between several files or
            missing (E118), or what the reader of torch zip files raises.
    """
    tag_folder, files = folder, list[Path]()
    if LATEST in names:
        tag_folder, files = folder / _tag(folder), [folder / LATEST]
        names = list_names(tag_folder)
    models = sorted(name for name in names if _MODEL.fullmatch(name))
    if len(models) != 1 or any(_EXPERT.fullmatch(name) for name in names):
        raise _shared_out(tag_folder, names, models)
    with open_member(tag_folder, models[0]) as file:
        whole = read_torch_zip(file, tag_folder / models[0])
    return replace(whole, path=folder, container="DeepSpeed", files=(*files, tag_folder / models[0]))


def _tag(folder: Path) -> str:
    """Return the tag that ``latest`` names: a real folder right beside it."""
    with open_member(folder, LATEST) as file:
        content = file.read(_MAX_TAG_BYTES + 2, 0)
    tag = content.decode("utf-8", "replace").strip()
    if not is_plain_name(tag):
        facts = {"file": folder / LATEST, "found": repr(tag)[:120], "expected": "the name of a folder beside it"}
        raise CheckpointError("E116", "the checkpoint leads to a file outside its folder", facts=facts)
    try:
        mode = os.lstat(folder / tag).st_mode
    except OSError:
        mode = 0
    if stat.S_ISLNK(mode):
        facts = {"file": folder / tag, "found": "a symbolic link", "expected": "a folder"}
        raise CheckpointError("E116", "the checkpoint leads to a file outside its folder", facts=facts)
    if not stat.S_ISDIR(mode):
        facts = {"file": folder / LATEST, "found": tag, "expected": "the name of a folder beside it"}
        raise _error("the folder that `latest` names is not there", facts, "copy the whole folder, or name the folder of one tag")
    return tag


def _shared_out(folder: Path, names: set[str], models: list[str]) -> CheckpointError:
    expected = "one mp_rank_00_model_states.pt with the whole model, as ZeRO 1 and 2 write it"
    if any(_ZERO3.fullmatch(name) for name in names):
        found, remedy = "ZeRO 3: every process has a part of every weight", "gather it with DeepSpeed's zero_to_fp32.py, which stands in the folder"
    elif any(_PIPELINE.fullmatch(name) for name in names):
        found, remedy = "pipeline parallelism: a file for each layer", "gather the weights with the training code"
    elif any(_EXPERT.fullmatch(name) for name in names):
        found, remedy = "a mixture of experts: each expert in a file of its own", "gather the weights with the training code"
    elif models:
        found, remedy = f"model parallelism: {len(models)} files mp_rank_*", "gather the weights with the training code"
    else:
        found, remedy = "no mp_rank_00_model_states.pt", "copy the whole folder again; if saving was interrupted, take the tag before it"
    return _error(
        "the weights are not whole in one file of this DeepSpeed checkpoint", {"file": folder, "found": found, "expected": expected}, remedy
    )


def _error(problem: str, facts: dict[str, object], remedy: str) -> CheckpointError:
    return CheckpointError("E118", problem, facts=facts, help=remedy)
