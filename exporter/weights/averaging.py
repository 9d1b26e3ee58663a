"""Averages of several checkpoints: stochastic weight averaging, model soups, and other linear combinations of whole files.

Each checkpoint gives what baking it alone would give; the floating tensors are combined by name, in float64, and rounded once. Nothing
is read twice, and no tensor is held whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from exporter import __version__
from exporter.artifacts import BakeSummary, BatchNormStatistics, Checkpoint, Digest, Provenance, TensorRef, TensorSpec, Weights, to_json
from exporter.errors import LayoutError
from exporter.files import atomic_write, digest_of_settings
from exporter.tensors import header_bytes
from exporter.tensors.contents import contents_digest
from exporter.weights.baking import cast_of, refuse_overwriting, write_tensors
from exporter.weights.batch_norm import count_layers, is_statistic
from exporter.weights.blend import Blend, Source, is_blendable
from exporter.weights.chosen import Chosen, choose
from exporter.weights.identity import identify, lineage_key
from exporter.weights.layouts import registered_versions
from exporter.weights.left_behind import left_behind
from exporter.weights.plan import BakePlan, Planned
from exporter.weights.storing import metadata_of, store_record

if TYPE_CHECKING:
    from exporter.config import BakeConfig

__all__ = ["Combination", "average", "average_key", "combine", "mean_of"]

_MAX_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Combination:
    """How several checkpoints become one: the sum of coefficient times checkpoint, divided by ``divisor``.

    Attributes:
        coefficients: one for each checkpoint, finite; those of a mean are positive.
        divisor: the sum of the coefficients for a mean, else 1.
        kind: ``average``, or what else it is called in the provenance.
        facts: of the kind, for the provenance.
        remarks: what a reader should know.
        keeps_constants: floating tensors that are the same in all checkpoints, and counters of BatchNorm in whatever dtype, come from
            the last one, as integers do: where the coefficients sum to 1 only nearly, a constant is not to change, and where a library
            wrote its integers in half precision a sum of them means nothing.
    """

    coefficients: tuple[float, ...]
    divisor: float = 1.0
    kind: str = "average"
    facts: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = field(default=(), compare=False)
    keeps_constants: bool = False


def mean_of(checkpoints: Sequence[Checkpoint], shares: Sequence[float] | None = None) -> Combination:
    """Return the mean of the checkpoints, all alike or by ``shares``, which are divided by their sum.

    Raises:
        LayoutError: fewer than two checkpoints (E249), or shares that are not one positive number for each (E250).
    """
    if len(checkpoints) < 2:
        found = ", ".join(str(checkpoint.path) for checkpoint in checkpoints) or "none"
        facts = {"found": found, "expected": "two checkpoints or more"}
        raise LayoutError("E249", "an average of several checkpoints needs several", facts=facts, help="one checkpoint: exporter bake-ema")
    coefficients = tuple(map(float, shares)) if shares is not None else (1.0,) * len(checkpoints)
    if len(coefficients) != len(checkpoints) or not all(math.isfinite(share) and share > 0 for share in coefficients):
        facts = {"found": ", ".join(f"{share:g}" for share in coefficients) or "none", "expected": f"{len(checkpoints)} positive numbers"}
        raise LayoutError("E250", "the shares do not fit the checkpoints", facts=facts, help="one share for each checkpoint, in their order")
    total = math.fsum(coefficients)
    parts = [f"{checkpoint.path.name} {share / total:.2%}" for checkpoint, share in zip(checkpoints, coefficients, strict=True)]
    return Combination(coefficients, total, remarks=(f"mean of {len(checkpoints)} checkpoints: {_shown(parts)}",))


def average(
    checkpoints: Sequence[Checkpoint],
    config: BakeConfig,
    output: Path,
    *,
    shares: Sequence[float] | None = None,
    progress: Callable[[int, int], None] | None = None,
    parameter_order: tuple[TensorSpec, ...] | None = None,
) -> Weights:
    """Write the mean of several checkpoints of one model to ``output``, with a record beside it.

    From each checkpoint ``config`` chooses one copy of the weights, as in ``bake``: its average by default, never the raw weights
    by fallback. Names, shapes and dtypes have to be the same. Floating tensors are combined in float64 and rounded once; integers
    and booleans come from the last checkpoint.

    Args:
        checkpoints: two or more, from ``open_checkpoint``.
        config: which weights of each, in which dtype, and what is tolerated.
        output: the safetensors file to write.
        shares: of each checkpoint, divided by their sum; None means that all count alike.
        progress: called with bytes done and bytes in all, of the output.
        parameter_order: name and shape of every parameter of the model in its own order, for averages that are lists without names.

    Raises:
        LayoutError: as ``bake``; the checkpoints differ (E247, E248), or too few of them or of shares (E249, E250).
        CheckpointError: the bytes of a tensor are damaged (E104, E109).
        ArtifactError: ``output`` cannot be written (E711).
    """
    return combine(checkpoints, mean_of(checkpoints, shares), config, output, progress=progress, parameter_order=parameter_order)


def average_key(
    digests: Sequence[Digest], combination: Combination, config: BakeConfig, *, parameter_order: Sequence[TensorSpec] | None = None
) -> str:
    """Return the digest of everything that decides the bytes of a combination."""
    parts = {
        "stage": "weights",
        "checkpoints": [digest.hex for digest in digests],
        "combination": [
            list(combination.coefficients),
            combination.divisor,
            combination.kind,
            [list(fact) for fact in combination.facts],
            combination.keeps_constants,
        ],
        "config": config.to_json(),
        "exporter": __version__,
        "parameter order": to_json(list(parameter_order or ())),
        "layouts": list(registered_versions()),
    }
    return digest_of_settings(parts).hex


def combine(
    checkpoints: Sequence[Checkpoint],
    combination: Combination,
    config: BakeConfig,
    output: Path,
    *,
    digests: Sequence[Digest] | None = None,
    progress: Callable[[int, int], None] | None = None,
    parameter_order: tuple[TensorSpec, ...] | None = None,
) -> Weights:
    """Write a linear combination of several checkpoints; see ``average`` for arguments and errors."""
    for checkpoint in checkpoints:
        refuse_overwriting(checkpoint, output)
    chosen = [choose(checkpoint, config, parameter_order) for checkpoint in checkpoints]
    for checkpoint, one in zip(checkpoints[1:], chosen[1:], strict=True):
        _check_alike(checkpoints[0], chosen[0].plan, checkpoint, one.plan)
    plan = _combined([one.plan for one in chosen], combination)
    digests = digests if digests is not None else [identify(checkpoint, config.digest) for checkpoint in checkpoints]
    lineage = _lineage(checkpoints, digests, chosen, combination, config)
    header = header_bytes(plan.specs, metadata_of(lineage))
    with atomic_write(output) as file:
        checksums, _ = write_tensors(header, checkpoints[-1].path, plan, config, file, progress)
    summary = BakeSummary(
        layout=", ".join(dict.fromkeys(one.match.layout for one in chosen)),
        choice=lineage["weights"],
        num_averaged=sum(planned.is_averaged for planned in plan.tensors),
        num_copied=sum(not planned.is_averaged for planned in plan.tensors),
        size_bytes=output.stat().st_size,
        cast=cast_of(plan),
        left_behind=_left_behind(checkpoints, chosen),
        drift=(),
        drift_total=None,
        remarks=combination.remarks,
        batch_norm=_batch_norm(plan, config),
    )
    made_from = {f"checkpoint {number}": str(digest) for number, digest in enumerate(digests, 1)}
    provenance = Provenance("weights", made_from, config.to_json(), {"exporter": __version__}, lineage)
    key = average_key(digests, combination, config, parameter_order=parameter_order)
    written = contents_digest(header, checksums) if any(digest.of != "file" for digest in digests) else None
    return store_record(output, key, plan.specs, summary, provenance, digest=written)


def _combined(plans: Sequence[BakePlan], combination: Combination) -> BakePlan:
    by_name = [{planned.name: planned.source for planned in plan.tensors} for plan in plans]
    tensors = []
    for planned in plans[0].tensors:
        sources = [sources[planned.name] for sources in by_name]
        if is_blendable(planned.source.dtype) and not (combination.keeps_constants and _is_constant(planned.name, sources)):
            terms = tuple(term for source, share in zip(sources, combination.coefficients, strict=True) for term in _terms(source, share))
            blend = Blend(terms, planned.source.dtype, combination.divisor)
            tensors.append(Planned(planned.name, blend, planned.dtype, is_averaged=True))
        else:
            tensors.append(replace(planned, source=sources[-1], is_averaged=False, twin=None))
    return BakePlan(tuple(tensors), plans[0].names)


def _is_constant(name: str, sources: Sequence[Source]) -> bool:
    """Return whether the last checkpoint's tensor is that of all, as far as checksums tell, or counts batches."""
    if is_statistic(name, with_counter=True) and not is_statistic(name):
        return True
    seen = {_contents(source) for source in sources}
    return len(seen) == 1 and None not in seen


def _contents(source: Source) -> tuple[object, ...] | None:
    if isinstance(source, Blend) or (source.storage.crc32 is None and source.storage.crc32c is None):
        return None
    return source.dtype, source.shape, source.strides, source.offset, source.storage.crc32, source.storage.crc32c, source.storage.size_bytes


def _terms(source: Source, share: float) -> Iterator[tuple[float, TensorRef]]:
    if isinstance(source, Blend):
        yield from ((share * coefficient / source.divisor, ref) for coefficient, ref in source.terms)
    else:
        yield share, source


def _check_alike(first: Checkpoint, wanted: BakePlan, checkpoint: Checkpoint, plan: BakePlan) -> None:
    """Compare names, shapes and dtypes.

    Raises:
        LayoutError: names (E247), or shapes or dtypes (E248) differ.
    """
    known, found = ({planned.name: planned.source for planned in one.tensors} for one in (wanted, plan))
    missing, extra = [name for name in wanted.names if name not in found], [name for name in plan.names if name not in known]
    if missing or extra:
        facts = {
            "file": checkpoint.path,
            "missing": _shown(missing) or "none",
            "extra": _shown(extra) or "none",
            "expected": f"the names of {first.path}",
        }
        import difflib

        near = difflib.get_close_matches((missing or extra)[0], extra if missing else wanted.names, n=1)
        if near:
            facts["near miss"] = near[0]
        help_text = "checkpoints of one model are averaged; a prefix that only some of them have goes with --strip-prefix, once those are baked"
        raise LayoutError("E247", "the checkpoints do not hold the same tensors", facts=facts, help=help_text)
    for name, source in known.items():
        other = found[name]
        if (source.shape, source.dtype) != (other.shape, other.dtype):
            facts = {
                "file": checkpoint.path,
                "at": name,
                "found": f"{other.dtype} {list(other.shape)}",
                "expected": f"{source.dtype} {list(source.shape)}, as in {first.path}",
            }
            raise LayoutError("E248", f"the checkpoints hold {name} in different forms", facts=facts)


def _lineage(
    checkpoints: Sequence[Checkpoint], digests: Sequence[Digest], chosen: Sequence[Chosen], combination: Combination, config: BakeConfig
) -> dict[str, str]:
    layouts = ", ".join(dict.fromkeys(one.match.layout for one in chosen))
    names = [checkpoint.path.name for checkpoint in checkpoints]
    lineage = {"checkpoint": _shown(names), "weights": f"{combination.kind}:{config.choice}", "layout": layouts, "exporter": __version__}
    lineage |= dict(combination.facts)
    for number, (name, digest, one) in enumerate(zip(names, digests, chosen, strict=True), 1):
        place = f"checkpoint_{number}"
        lineage |= {place: name, lineage_key(digest).replace("checkpoint", place): digest.hex}
        lineage[f"{place}_weights"] = "raw" if one.average is None else f"ema:{one.average.name}"
        lineage[f"{place}_share"] = repr(combination.coefficients[number - 1] / combination.divisor)
    return lineage


def _left_behind(checkpoints: Sequence[Checkpoint], chosen: Sequence[Chosen]) -> dict[str, int]:
    total: dict[str, int] = {}
    for checkpoint, one in zip(checkpoints, chosen, strict=True):
        for what, size_bytes in left_behind(checkpoint, one.match, one.plan).items():
            total[what] = total.get(what, 0) + size_bytes
    return total


def _batch_norm(plan: BakePlan, config: BakeConfig) -> BatchNormStatistics | None:
    """Return what is to be said of the statistics: each fits the weights of its own checkpoint, and their mean fits none for certain."""
    num_layers = count_layers(plan.names)
    if not num_layers:
        return None
    warning = "BatchNorm statistics of several checkpoints do not average, and theirs may not fit the mean of the weights"
    help_text = "exporter bake-ema --bn-stats recalibrate, given this file, estimates them on your samples"
    return BatchNormStatistics("averaged", config.bn_stats, num_layers, f"{warning}: {help_text}")


def _shown(names: Sequence[str]) -> str:
    more = len(names) - _MAX_SHOWN
    return ", ".join(names[:_MAX_SHOWN]) + (f", ... {more} more" if more > 0 else "")
