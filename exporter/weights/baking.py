"""Baking: the chosen copy of the weights, under the model's own names, into a safetensors file.

Bytes go from the checkpoint to the output in chunks: no tensor is held whole unless it is a strided view, and torch is not
needed. The digest of the checkpoint is taken in a thread beside.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from exporter import __version__
from exporter.artifacts import BakeSummary, Checkpoint, Digest, EmaCandidate, Provenance, Weights
from exporter.errors import CheckpointError, LayoutError
from exporter.files import atomic_write
from exporter.tensors import DTYPES, TensorReader, header_bytes
from exporter.tensors import checkpoint_digest as digest_of_checkpoint
from exporter.tensors.dtypes import SHORT_NAMES
from exporter.tensors.safetensors_writing import spec_size_bytes
from exporter.weights.choice import check_health, choose_average, choose_raw, refuse_unreadable
from exporter.weights.drift import DriftSums
from exporter.weights.left_behind import left_behind
from exporter.weights.plan import BakePlan, plan_average, plan_raw
from exporter.weights.reading import candidate_of, match_layout
from exporter.weights.storing import store_record, weights_key
from exporter.weights.streaming import stream_tensor

if TYPE_CHECKING:
    from exporter.config import BakeConfig

__all__ = ["bake"]

_BLANK = Digest("0" * 64)
"""Holds the place of the checkpoint's digest in the header while it is computed."""


def bake(
    checkpoint: Checkpoint,
    config: BakeConfig,
    output: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    checkpoint_digest: Digest | None = None,
) -> Weights:
    """Write the weights that ``config`` chooses to ``output``, with a record beside it.

    The same checkpoint, settings and version give the same bytes. On any error ``output`` is as it was.

    Args:
        checkpoint: from ``open_checkpoint``.
        config: which weights, in which dtype, and what is tolerated.
        output: the safetensors file to write.
        progress: called with bytes done and bytes in all.
        checkpoint_digest: SHA-256 of the checkpoint's bytes, where the caller has it already.

    Raises:
        LayoutError: E201 to E218: the weights asked for are not there, are ambiguous, do not fit together, or are not finite.
        CheckpointError: the bytes of a tensor are damaged (E104, E109).
        ArtifactError: ``output`` cannot be written (E711).
    """
    match = match_layout(checkpoint)
    refuse_unreadable(checkpoint, match)
    _refuse_overwriting(checkpoint, output)
    candidate: EmaCandidate | None = None
    if config.choice == "ema":
        average = choose_average(checkpoint, match, config)
        candidate = candidate_of(average, decay=config.decay)
        check_health(checkpoint, candidate, config)
        plan = plan_average(checkpoint, average, match.raw, config)
    else:
        plan = plan_raw(checkpoint, choose_raw(checkpoint, match), config)
    lineage = _lineage(checkpoint, match.layout, candidate)
    pending = _digest_beside(checkpoint) if checkpoint_digest is None else None
    with atomic_write(output) as file:
        file.write(header_bytes(plan.specs, _metadata(lineage, _BLANK)))
        sums = _write_tensors(checkpoint, plan, config, file, progress)
        digest = pending.result() if pending is not None else checkpoint_digest or _BLANK
        file.seek(0)
        file.write(header_bytes(plan.specs, _metadata(lineage, digest)))  # as long as the blank one
    summary = BakeSummary(
        layout=match.layout,
        choice=lineage["weights"],
        num_averaged=sum(planned.is_averaged for planned in plan.tensors),
        num_copied=sum(not planned.is_averaged for planned in plan.tensors),
        size_bytes=output.stat().st_size,
        cast=_cast_of(plan),
        left_behind=left_behind(checkpoint, match, plan),
        drift=tuple(sums[name].of(name) for name in plan.names if name in sums),
        drift_total=_total(sums),
        candidate=candidate,
    )
    provenance = Provenance(
        stage="weights",
        made_from={"checkpoint": str(digest)},
        settings=config.model_dump(mode="json"),
        versions={"exporter": __version__},
        lineage=_with_digest(lineage, digest),
    )
    return store_record(output, weights_key(digest, config), plan.specs, summary, provenance)


def _write_tensors(
    checkpoint: Checkpoint, plan: BakePlan, config: BakeConfig, file: BinaryIO, progress: Callable[[int, int], None] | None
) -> dict[str, DriftSums]:
    """Write all tensors in order; return the drift of those that have a raw twin."""
    total, done = sum(spec_size_bytes(spec) for spec in plan.specs), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    drifts: dict[str, DriftSums] = {}
    with TensorReader() as reader:
        for planned in plan.tensors:
            sums = stream_tensor(planned, reader, file, path=checkpoint.path, allow_nonfinite=config.allow_nonfinite, advance=advance)
            if sums is not None:
                drifts[planned.name] = sums
    return drifts


def _digest_beside(checkpoint: Checkpoint) -> Future[Digest]:
    """Take the checkpoint's digest in a thread that nobody waits for where baking is refused or interrupted."""
    pending: Future[Digest] = Future()

    def run() -> None:
        try:
            pending.set_result(digest_of_checkpoint(checkpoint))
        except CheckpointError as err:
            pending.set_exception(err)

    threading.Thread(target=run, name="digest", daemon=True).start()
    return pending


def _total(drifts: Mapping[str, DriftSums]) -> float | None:
    total = DriftSums()
    for sums in drifts.values():
        total.merge(sums)
    return total.relative if drifts else None


def _lineage(checkpoint: Checkpoint, layout: str, candidate: EmaCandidate | None) -> dict[str, str]:
    facts = {"checkpoint": checkpoint.path.name, "weights": "raw", "layout": layout, "exporter": __version__}
    if candidate is not None:
        facts["weights"] = f"ema:{candidate.name}"
        facts["ema_updates"] = "unknown" if candidate.updates is None else str(candidate.updates)
        facts["ema_decay"] = "unknown" if candidate.decay is None else repr(candidate.decay)
        facts["ema_schedule"] = candidate.schedule
    return facts


def _with_digest(lineage: Mapping[str, str], digest: Digest) -> dict[str, str]:
    return {**lineage, "checkpoint_sha256": digest.hex}


def _metadata(lineage: Mapping[str, str], digest: Digest) -> dict[str, str]:
    return {"format": "pt"} | {f"exporter.{key}": value for key, value in _with_digest(lineage, digest).items()}


def _cast_of(plan: BakePlan) -> str:
    floats = [planned for planned in plan.tensors if DTYPES[planned.source.dtype].kind == "float"]
    sides = ({planned.source.dtype for planned in floats}, {planned.dtype for planned in floats})
    return " → ".join(", ".join(sorted(SHORT_NAMES.get(name, name) for name in side)) or "no floating tensors" for side in sides)


def _refuse_overwriting(checkpoint: Checkpoint, output: Path) -> None:
    if output.exists() and any(output.samefile(path) for path in checkpoint.files or (checkpoint.path,)):
        raise LayoutError("E215", "the output would overwrite the checkpoint; nothing was written", facts={"file": output}, help="-o another name")
