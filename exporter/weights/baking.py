"""Baking: the chosen copy of the weights, under the model's own names, into a safetensors file.

Bytes go from the checkpoint to the output in chunks: no tensor is held whole unless it is a strided view, and torch is not
needed. One thread reads and checks, another writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from exporter import __version__
from exporter.artifacts import BakeSummary, Checkpoint, Digest, EmaCandidate, Provenance, Selection, TensorSpec, Weights
from exporter.errors import LayoutError
from exporter.files import atomic_write
from exporter.locations import Location, RemotePath
from exporter.tensors import DTYPES, TensorReader, header_bytes, size_bytes
from exporter.tensors.contents import contents_digest
from exporter.tensors.dtypes import SHORT_NAMES
from exporter.tensors.safetensors_writing import spec_size_bytes
from exporter.weights.batch_norm import statistics_of
from exporter.weights.blend import inputs_of
from exporter.weights.chosen import choose
from exporter.weights.drift import DriftSums
from exporter.weights.identity import identify, lineage_key
from exporter.weights.left_behind import left_behind
from exporter.weights.plan import BakePlan
from exporter.weights.storing import metadata_of, store_record, weights_key
from exporter.weights.streaming import stream_tensor
from exporter.weights.writing_behind import WriterBehind

if TYPE_CHECKING:
    from exporter.config import BakeConfig

__all__ = ["bake", "cast_of", "refuse_overwriting", "write_tensors"]

_MAX_DRIFT_BYTES = 256_000_000
"""Averaged weights up to this size are compared with the raw ones unless that is decided: it takes them once more as long.
Those behind a URL are not: it would be as much again to fetch."""

_ZEROISH_SCALE = 0.1
"""Below this share of the norm of the raw weights an average is more zeros than weights."""


def bake(
    checkpoint: Checkpoint,
    config: BakeConfig,
    output: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    checkpoint_digest: Digest | None = None,
    parameter_order: tuple[TensorSpec, ...] | None = None,
    selection: Selection | None = None,
) -> Weights:
    """Write the weights that ``config`` chooses to ``output``, with a record beside it.

    The same checkpoint, settings and version give the same bytes. On any error ``output`` is as it was.

    Args:
        checkpoint: from ``open_checkpoint``.
        config: which weights, in which dtype, and what is tolerated.
        output: the safetensors file to write.
        progress: called with bytes done and bytes in all.
        checkpoint_digest: what identifies the checkpoint, where the caller has it already.
        parameter_order: name and shape of every parameter of the model in its own order, for averages that are lists without names.
        selection: how the caller chose these weights, to be recorded.

    Raises:
        LayoutError: E201 to E225, E245 to E249: the weights asked for are not there, are ambiguous, do not fit together, or are not finite.
        CheckpointError: the bytes of a tensor are damaged (E104, E109).
        ArtifactError: ``output`` cannot be written (E711).
    """
    refuse_overwriting(checkpoint, output)
    if config.select:
        facts = {"file": checkpoint.path, "found": f"select {config.select!r}", "meaning": "measuring takes the model and labelled samples"}
        raise LayoutError("E253", "a bake by itself cannot select weights by a metric", facts=facts, help="exporter bake-ema --select best")
    chosen = choose(checkpoint, config, parameter_order)
    match, average, candidate, plan = chosen.match, chosen.average, chosen.candidate, chosen.plan
    plan = plan if _measures_drift(plan, config) else BakePlan(tuple(replace(planned, twin=None) for planned in plan.tensors), plan.names)
    digest = checkpoint_digest if checkpoint_digest is not None else identify(checkpoint, config.digest)
    statistics = statistics_of(plan.names, average, match.raw, config)
    lineage = {**_lineage(checkpoint, match.layout, candidate), lineage_key(digest): digest.hex}
    if statistics is not None:
        lineage["bn_stats"] = statistics.source
    if selection is not None:
        values = ", ".join(f"{name} {value:.6g}" for name, value in selection.values.items())
        lineage["selected"] = f"{selection.metric} on {selection.num_samples} samples: {values}"
    header = header_bytes(plan.specs, metadata_of(lineage))
    with atomic_write(output) as file:
        checksums, sums = write_tensors(header, checkpoint.path, plan, config, file, progress)
    summary = BakeSummary(
        layout=match.layout,
        choice=lineage["weights"],
        num_averaged=sum(planned.is_averaged for planned in plan.tensors),
        num_copied=sum(not planned.is_averaged for planned in plan.tensors),
        size_bytes=output.stat().st_size,
        cast=cast_of(plan),
        left_behind=left_behind(checkpoint, match, plan),
        drift=tuple(sums[name].of(name) for name in plan.names if name in sums),
        drift_total=_total(sums).relative if sums else None,
        candidate=candidate,
        remarks=_remarks(_total(sums)),
        batch_norm=statistics,
        selection=selection,
    )
    provenance = Provenance(
        stage="weights",
        made_from={"checkpoint": str(digest)},
        settings=config.to_json(),
        versions={"exporter": __version__},
        lineage=lineage,
    )
    key = weights_key(digest, config, parameter_order=parameter_order, selection=selection)
    written = contents_digest(header, checksums) if digest.of != "file" else None
    return store_record(output, key, plan.specs, summary, provenance, digest=written)


def write_tensors(
    header: bytes, path: Location, plan: BakePlan, config: BakeConfig, file: BinaryIO, progress: Callable[[int, int], None] | None
) -> tuple[list[int], dict[str, DriftSums]]:
    """Write the header and all tensors in order; return the CRC-32 of each, and the drift of those that have a raw twin."""
    total, done = sum(spec_size_bytes(spec) for spec in plan.specs), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    checksums: list[int] = []
    drifts: dict[str, DriftSums] = {}
    with TensorReader() as reader, WriterBehind(file.fileno(), expected_bytes=len(header) + total) as target:
        target.write(header)
        reader.expect(ref for planned in plan.tensors for source in (planned.source, planned.twin) if source is not None for ref in inputs_of(source))
        for planned in plan.tensors:
            crc, sums = stream_tensor(planned, reader, target, path=path, allow_nonfinite=config.allow_nonfinite, advance=advance)
            checksums.append(crc)
            if sums is not None:
                drifts[planned.name] = sums
    return checksums, drifts


def _measures_drift(plan: BakePlan, config: BakeConfig) -> bool:
    if config.drift == "auto" and any(isinstance(ref.storage.path, RemotePath) for planned in plan.tensors for ref in inputs_of(planned.source)):
        return False
    if config.drift == "auto":
        return sum(size_bytes(planned.source) for planned in plan.tensors if planned.is_averaged) <= _MAX_DRIFT_BYTES
    return config.drift == "always"


def _total(drifts: Mapping[str, DriftSums]) -> DriftSums:
    total = DriftSums()
    for sums in drifts.values():
        total.merge(sums)
    return total


def _remarks(total: DriftSums) -> tuple[str, ...]:
    """Return what the values tell that the layout does not: an average that nearly vanishes beside the raw weights."""
    if not total.scale < _ZEROISH_SCALE:
        return ()
    return (f"nearly zero: its norm is {total.scale:.2%} of the raw weights', as of an average that began with zeros and was never divided",)


def _lineage(checkpoint: Checkpoint, layout: str, candidate: EmaCandidate | None) -> dict[str, str]:
    facts = {"checkpoint": checkpoint.path.name, "weights": "raw", "layout": layout, "exporter": __version__}
    if candidate is not None:
        facts["weights"] = f"ema:{candidate.name}"
        facts["ema_updates"] = "unknown" if candidate.updates is None else str(candidate.updates)
        facts["ema_decay"] = "unknown" if candidate.decay is None else repr(candidate.decay)
        facts["ema_schedule"] = candidate.schedule
    return facts


def cast_of(plan: BakePlan) -> str:
    """Return the dtypes of the floating tensors before and after, for the screen."""
    floats = [planned for planned in plan.tensors if DTYPES[planned.source.dtype].kind == "float"]
    sides = ({planned.source.dtype for planned in floats}, {planned.dtype for planned in floats})
    return " → ".join(", ".join(sorted(SHORT_NAMES.get(name, name) for name in side)) or "no floating tensors" for side in sides)


def refuse_overwriting(checkpoint: Checkpoint, output: Path) -> None:
    """Refuse an output that is one of the checkpoint's files.

    Raises:
        LayoutError: E215.
    """
    if output.exists() and any(isinstance(path, Path) and output.samefile(path) for path in checkpoint.files or (checkpoint.path,)):
        raise LayoutError("E215", "the output would overwrite the checkpoint; nothing was written", facts={"file": output}, help="-o another name")
