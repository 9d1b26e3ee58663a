"""``exporter inspect``: what is inside a file, without running or loading any of it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.inspect_plan import PLAN_SUFFIXES, show_plan
from exporter.cli.options import LocationType, screen_options
from exporter.cli.screen import Screen

if TYPE_CHECKING:
    from exporter.artifacts import Checkpoint, EmaCandidate, LayoutReading
    from exporter.locations import Location

__all__ = ["command"]

_MAX_NAMES = 8
_MAX_COUNTED = 500_000


@click.command("inspect")
@click.argument("checkpoint", metavar="CKPT", type=LocationType())
@click.option("--decay", type=float, help="Decay that training used, where the file does not say; it decides the health of the average.")
@click.option("--tree", is_flag=True, help="Show every entry with its shape and dtype.")
@click.option("--depth", type=click.IntRange(min=1), default=1, show_default=True, help="Levels of the tree shown without --tree.")
@click.option("--digest", is_flag=True, help="Read the whole file and show its SHA-256.")
@click.option("--layers", is_flag=True, help="Of a plan: load it in the TensorRT worker, and list its layers with their precision.")
@screen_options
@click.pass_obj
def command(screen: Screen, /, checkpoint: Location, decay: float | None, tree: bool, depth: int, digest: bool, layers: bool) -> None:
    """Show what is inside CKPT: layout, averages with their health, optimizer slots, tree, and the code that it names.

    Instant, and safe on any file: nothing in it is executed, and no tensor is loaded. Of a TensorRT plan (.plan, .engine, .trt) it shows
    what the sidecar says.
    """
    if isinstance(checkpoint, Path) and checkpoint.suffix in PLAN_SUFFIXES:
        show_plan(screen, checkpoint, layers=layers)
        return
    if layers:
        raise click.UsageError("--layers is for a TensorRT plan")
    from exporter.checkpoint import open_checkpoint
    from exporter.errors import printable
    from exporter.tensors import checkpoint_digest
    from exporter.weights import read_layout

    opened = open_checkpoint(checkpoint)
    reading = read_layout(opened, decay=decay)
    sha256 = checkpoint_digest(opened).hex if digest else None
    lines = [
        *_header(opened, reading, sha256),
        *_weights(reading),
        *_other(reading),
        *_code(opened),
        "tree     (all of it: --tree)" if not tree else "tree",
        *_tree(opened, None if tree else depth),
    ]
    screen.show([printable(line) for line in lines])
    screen.result({**_as_json(opened, reading), **({"sha256": sha256} if sha256 else {})})


def _header(checkpoint: Checkpoint, reading: LayoutReading, sha256: str | None) -> list[str]:
    from exporter.cli.tables import size_text

    return [
        f"{checkpoint.path}   {checkpoint.container} · {size_text(checkpoint.size_bytes)}" + (f" · sha256 {sha256}" if sha256 else ""),
        f"layout   {reading.layout}",
        *(f"         {remark}" for remark in reading.remarks),
        f"model    {f'auto: {_model(reading)}' if reading.model else 'not written in the file'}",
    ]


def _model(reading: LayoutReading) -> str:
    return reading.model + "".join(f" {key}={value!r}" for key, value in reading.model_arguments.items())


def _weights(reading: LayoutReading) -> list[str]:
    from exporter.artifacts import BATCH_NORM_SOURCES
    from exporter.cli.tables import columns, size_text

    rows = [("weights ", "NAME", "TENSORS", "DTYPE", "SIZE", "UPDATES", "DECAY", "STATE")]
    rows += [
        (
            "",
            candidate.name,
            str(candidate.num_tensors),
            ", ".join(candidate.dtypes),
            size_text(candidate.size_bytes),
            "?" if candidate.updates is None else str(candidate.updates),
            "?" if candidate.decay is None else candidate.schedule if candidate.schedule != "unknown" else f"{candidate.decay:g}",
            _state(candidate),
        )
        for candidate in reading.candidates
    ]
    if reading.raw_at is not None:
        size, place = size_text(reading.raw_size_bytes), f"at {reading.raw_at or 'the top'}"
        rows.append(("", "raw", str(reading.raw_num_tensors), ", ".join(reading.raw_dtypes), size, "-", "-", reading.raw_remark or place))
    else:
        rows.append(("", "raw", "-", "-", "-", "-", "-", reading.raw_remark or "not in this file"))
    lines = columns(rows, right=frozenset({2}))
    for candidate in reading.candidates:
        if candidate.batch_norm:
            lines.append(f"         BatchNorm statistics of {candidate.name}: {BATCH_NORM_SOURCES[candidate.batch_norm]}{_doubt(candidate)}")
    if not reading.candidates:
        lines.append(f"         no average found; looked at: {', '.join(reading.looked_at)}")
    return lines


def _doubt(candidate: EmaCandidate) -> str:
    return "; they may not fit it, see --bn-stats of bake-ema" if candidate.batch_norm in {"raw", "stale"} else ""


def _state(candidate: EmaCandidate) -> str:
    text: str = candidate.state
    if candidate.initial_share is not None:
        text += f": initial weights {candidate.initial_share:.1%} of it"
    if candidate.window is not None:
        text += f", looks back {candidate.window:.0f} updates"
    return f"{text}; {candidate.remark}" if candidate.remark else text


def _other(reading: LayoutReading) -> list[str]:
    from exporter.cli.tables import size_text

    return [
        f"other    {slot.at}: {slot.num_tensors} tensors {slot.slot}, {size_text(slot.size_bytes)}, of the optimizer (not weights)"
        for slot in reading.optimizer_slots
    ]


def _code(checkpoint: Checkpoint) -> list[str]:
    if not checkpoint.globals:
        return ["code     the file names none"]
    names = [str(g) for g in checkpoint.globals]
    shown = ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")
    lines = [f"code     {len(names)} globals named, none executed: {shown}"]
    for at, call in checkpoint.calls.items():
        lines.append(f"         SUSPICIOUS: the file would call {call} at {at or 'the top'}; every other command refuses it")
    return lines


def _tree(checkpoint: Checkpoint, depth: int | None) -> list[str]:
    from exporter.artifacts import GlobalRef, ObjectRef, TensorRef, brief, walk

    lines = []
    left = _MAX_COUNTED  # the same branch may stand in many places
    for at, node in walk(checkpoint.root):
        level = at.count("/") + at.count(".<")
        if not at or (depth is not None and level >= depth):
            continue
        name = at.rpartition("/")[2]
        if isinstance(node, TensorRef):
            text = f"{node.dtype} {list(node.shape)}"
        elif isinstance(node, (dict, list, tuple, set, frozenset)):
            kinds = [isinstance(item, TensorRef) for _, item in itertools.islice(walk(node), left)]
            left -= len(kinds)
            inside = sum(kinds) if left > 0 else 0
            text = f"{type(node).__name__} of {len(node)}" + (f", {inside} tensors" if inside else "")
        elif isinstance(node, ObjectRef):
            text = f"object {node.callee} (not executed)"
        elif isinstance(node, GlobalRef):
            text = f"global {node}"
        else:
            text = repr(node[:80])[:80] if isinstance(node, (str, bytes)) else brief(node)
        lines.append(f"  {'  ' * level}{name}  {text}")
    return lines


def _as_json(checkpoint: Checkpoint, reading: LayoutReading) -> dict[str, object]:
    from exporter.artifacts import TensorRef, to_json, walk

    tensors = {at: {"dtype": node.dtype, "shape": list(node.shape)} for at, node in walk(checkpoint.root) if isinstance(node, TensorRef)}
    return {
        "path": str(checkpoint.path),
        "container": checkpoint.container,
        "size_bytes": checkpoint.size_bytes,
        "globals": [str(g) for g in checkpoint.globals],
        "calls": {at: str(call) for at, call in checkpoint.calls.items()},
        "metadata": dict(checkpoint.metadata),
        "layout": to_json(reading),
        "tensors": tensors,
    }
