"""Reading the layout of a checkpoint: which copies of the weights it holds, and how healthy each average is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from exporter.artifacts import Checkpoint, EmaCandidate, LayoutReading, TensorSpec, brief
from exporter.errors import LayoutError
from exporter.tensors import size_bytes
from exporter.weights.batch_norm import source_of
from exporter.weights.blend import Source
from exporter.weights.debiasing import health_without_zeros, remark_on_zeros
from exporter.weights.health import effective_window, initial_share, state_of
from exporter.weights.layout import Average, Match, WeightSet
from exporter.weights.layouts import layouts
from exporter.weights.naming import name_in_order
from exporter.weights.optimizer import optimizer_slots
from exporter.weights.repetition import refuse_repetition
from exporter.weights.state_dicts import same_values

__all__ = ["candidate_of", "looked_at", "match_layout", "read_layout", "top_keys"]

_MAX_KEYS_SHOWN = 40
MAX_AVERAGES = 500
"""Post-hoc averages have some tens of snapshots, and no library more."""


def read_layout(checkpoint: Checkpoint, *, decay: float | None = None, parameter_order: tuple[TensorSpec, ...] | None = None) -> LayoutReading:
    """Return what the checkpoint holds: averages, raw weights, optimizer slots.

    Reads nothing of the tensors but counters of one element. A layout that is recognised and not baked has no candidates and
    says why in ``remarks``.

    Args:
        checkpoint: from ``open_checkpoint``.
        decay: what training used, where the file does not say.
        parameter_order: name and shape of every parameter of the model in its own order, for averages that are lists without names;
            ``needs_parameter_order`` of the reading says whether there are any.

    Raises:
        CheckpointError: a counter is damaged (E104, E109).
        LayoutError: names collide once prefixes are stripped (E216), a pickled module contains itself (E217), ``parameter_order``
            does not fit (E220), names were lost when the file was written (E221, E222), or a registered layout cannot be used (E224).
    """
    match = match_layout(checkpoint)
    raw, averages = match.raw, match.averages
    if parameter_order is not None:
        averages = tuple(name_in_order(checkpoint, average, raw, parameter_order) for average in averages)
    refs = tuple(raw.tensors.values()) if raw is not None else ()
    return LayoutReading(
        layout=match.layout,
        candidates=tuple(candidate_of(average, decay=decay, raw=raw) for average in averages),
        raw_at=(raw.at or "the top of the file") if raw is not None else None,
        raw_num_tensors=len(refs),
        raw_size_bytes=sum(map(size_bytes, refs)),
        raw_dtypes=_dtypes(refs),
        raw_remark=raw.remark if raw is not None else "",
        optimizer_slots=optimizer_slots(checkpoint.root),
        looked_at=looked_at(),
        found=top_keys(checkpoint),
        model=match.model,
        model_arguments=match.arguments,
        remarks=match.remarks,
        needs_parameter_order=any(average.is_nameless for average in averages),
    )


def match_layout(checkpoint: Checkpoint) -> Match:
    """Return the first layout that matches, with the averages that other layouts see beside its own."""
    refuse_repetition(checkpoint)
    first: Match | None = None
    for layout in layouts():
        match = layout.read(checkpoint)
        if match is None:
            continue
        if first is None:
            first = match
        if first.refusal:
            break
        if len(match.averages) > MAX_AVERAGES:
            facts = {"file": checkpoint.path, "found": f"{len(match.averages)} averages", "expected": f"at most {MAX_AVERAGES}"}
            raise LayoutError("E161", "the checkpoint holds more averages than any trainer keeps", facts=facts)
        known = [average.weights.at for average in first.averages] + ([first.raw.at] if first.raw is not None and first.raw.at else [])
        more = tuple(average for average in match.averages if not any(f"{average.weights.at}/".startswith(f"{at}/") for at in known))
        if more and match is not first and not match.refusal:
            first = replace(first, averages=(*first.averages, *more))
    return first if first is not None else Match("unknown")


def _remark(average: Average, raw: WeightSet | None) -> str:
    reminders = []
    if raw is not None and average.weights.at != raw.at and same_values(average.weights, raw):
        reminders.append("equal to the raw weights: not averaged yet, averaged already, or applied when it was saved")
    if average.is_nameless:
        reminders.append("a list without names: the order of the model's parameters is needed")
    if average.on_request:
        reminders.append(f"taken only by name: --ema {average.name}")
    return "; ".join(filter(None, (average.weights.remark, *reminders)))


def candidate_of(average: Average, *, decay: float | None = None, raw: WeightSet | None = None) -> EmaCandidate:
    """Return the average as it is shown, with its health; ``decay`` counts where the file does not say one.

    ``raw`` are the weights beside it: an average that equals them, as far as checksums tell, is said to.
    """
    schedule = average.schedule.with_decay(decay)
    refs = tuple(average.weights.tensors.values())
    remark = _remark(average, raw)
    if decay is not None and average.schedule.decay is not None and abs(average.schedule.decay - decay) > 1e-12:
        remark = "; ".join(filter(None, (remark, f"the file says decay {average.schedule.decay:.6g}; the {decay:.6g} given is not used")))
    health = (initial_share(schedule, average.updates), state_of(schedule, average.updates), effective_window(schedule, average.updates))
    if average.zero_initialised:
        health = health_without_zeros(schedule, average.updates)
        remark = "; ".join(filter(None, (remark, remark_on_zeros(schedule, average.updates))))
    share, state, window = health
    return EmaCandidate(
        name=average.name,
        at=average.weights.at or "the top of the file",
        num_tensors=len(refs),
        dtypes=_dtypes(refs),
        size_bytes=sum(map(size_bytes, refs)),
        updates=average.updates,
        decay=schedule.decay,
        schedule=str(schedule),
        initial_share=share,
        state=state,
        remark=remark,
        window=window,
        batch_norm=source_of(average, raw) or "",
    )


def looked_at() -> tuple[str, ...]:
    """Return the keys that the layouts look for, each once, in the order of the table."""
    return tuple(dict.fromkeys(key for layout in layouts() for key in layout.looked_at))


def top_keys(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the keys at the top of the file, the first of very many."""
    if not isinstance(checkpoint.root, Mapping):
        return (f"a single {type(checkpoint.root).__name__}",)
    keys = [brief(key) for key in list(checkpoint.root)[:_MAX_KEYS_SHOWN]]
    left = len(checkpoint.root) - len(keys)
    return (*keys, *([f"... {left} more"] if left else []))


def _dtypes(refs: Iterable[Source]) -> tuple[str, ...]:
    return tuple(sorted({ref.dtype for ref in refs}))
