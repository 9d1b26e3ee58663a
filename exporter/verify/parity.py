"""Compare a candidate with the float64 reference: every output, by name, on every feed."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence

from exporter.artifacts import EIGHT_BIT, Outcome, OutputParity, ParityEvidence, Verdict
from exporter.config import ParityConfig
from exporter.errors import InternalError, ModelNotSupported
from exporter.runners.base import Array, Repetition, Runner
from exporter.verify.error_numbers import OutputScale, measure_scale
from exporter.verify.feeds import NamedFeed
from exporter.verify.output_parity import judge_output, unmatched_output
from exporter.verify.output_values import is_floating, values_by_sample
from exporter.verify.reference import CandidateOutputs, OwnError, Reference, collect_outputs
from exporter.verify.tolerance import tolerance_for

__all__ = ["compare"]


def compare(
    reference: Reference,
    own_error: OwnError,
    candidate: Runner,
    config: ParityConfig,
    *,
    predecessor: CandidateOutputs | Runner | None = None,
    outputs: CandidateOutputs | None = None,
    samples_required: bool = False,
    localise: Callable[[], str] | None = None,
) -> Verdict:
    """Judge ``candidate`` by the rule of ``exporter.verify.output_parity``.

    Args:
        reference: what to agree with, and the feeds.
        own_error: of the unfused model in the candidate's declared precision.
        candidate: entered.
        config: tolerances.
        predecessor: the candidate before this one in the chain, entered, or what it returned.
        outputs: what ``candidate`` returned, where it has been run on the feeds of ``reference`` already.
        samples_required: NOT_RUN rather than PASS where the feeds hold no recorded sample.
        localise: called on FAIL; says which layer departs first.

    Returns:
        ``check="parity"``, ``subject=candidate.name``, the numbers as ``ParityEvidence``.

    Raises:
        InternalError: E963, ``own_error`` was measured in another precision than the candidate declares.
    """
    start = time.perf_counter()
    if own_error.precision != candidate.precision:
        facts = {"candidate": candidate.name, "found": own_error.precision, "expected": candidate.precision}
        raise InternalError("E963", "the own error was measured in another precision than the candidate's", facts=facts)
    kinds = {named.kind for named in reference.feeds}
    if samples_required and "recorded" not in kinds:
        reason = 'samples are required and none are configured: [samples] path = "samples.npz"'
        return Verdict("parity", candidate.name, Outcome.NOT_RUN, reason)
    if candidate.precision in EIGHT_BIT:
        if "recorded" not in kinds:
            reason = 'ranges in 8 bits hold for recorded samples, and none are configured: [samples] path = "samples.npz"'
            return Verdict("parity", candidate.name, Outcome.NOT_RUN, reason)
        reference = _recorded_only(reference)
    own_candidate = outputs if outputs is not None else collect_outputs(candidate, reference.feeds)
    judged = _judge_feeds(reference, own_error, own_candidate, config)
    shown = {output: _shown(judged[output]) for output in judged}
    repetition: Repetition = getattr(candidate, "repetition", None) or Repetition()
    failed = bool(repetition.unwritten) or any(parity.outcome is Outcome.FAIL for _, parity in shown.values())
    remarks = [
        *reference.remarks,
        *own_error.remarks,
        *([] if "recorded" in kinds else ["random inputs only"]),
        *_edge_remarks(judged, failed=failed),
    ]
    before = (
        None if predecessor is None else predecessor if isinstance(predecessor, CandidateOutputs) else collect_outputs(predecessor, reference.feeds)
    )
    distances = {} if before is None else _distances(before, own_candidate, reference)
    if before is not None and failed:
        remarks.append(_culprit_remark(before.name, distances, shown))
    names = {name for batches in own_candidate.outputs.values() for batch in batches for name in batch}
    extra = tuple(sorted(names - set(judged)))
    if extra:
        remarks.append(f"outputs that the reference does not have, not judged: {', '.join(extra)}")
    evidence = ParityEvidence(
        candidate=candidate.name,
        precision=candidate.precision,
        reference=reference.description,
        feeds=tuple(named.name for named in reference.feeds),
        num_samples=_num_samples(reference.feeds),
        outputs=tuple(parity for _, parity in shown.values()),
        predecessor=before.name if before is not None else "",
        predecessor_relative_l2=distances,
        extra_outputs=extra,
        batch_invariance=_batch_invariance(own_candidate, reference),
        repeats=_repeats(repetition),
        localisation=_localise(localise, remarks) if failed else "",
        remarks=tuple(remarks),
    )
    outcome = Outcome.FAIL if failed else Outcome.PASS
    reason = _unwritten(repetition) or _reason(shown, evidence)
    return Verdict("parity", candidate.name, outcome, reason, evidence=evidence, seconds=time.perf_counter() - start)


def _recorded_only(reference: Reference) -> Reference:
    """Return the reference on the recorded samples: what is beyond the ranges of the calibration is cut off, on purpose."""
    feeds = tuple(named for named in reference.feeds if named.kind == "recorded")
    left = ", ".join(named.name for named in reference.feeds if named.kind != "recorded")
    remarks = [f"beyond the ranges that the samples gave, not judged: {left}"] if left else []
    return dataclasses.replace(reference, feeds=feeds, remarks=(*reference.remarks, *remarks))


def _judge_feeds(
    reference: Reference, own_error: OwnError, candidate: CandidateOutputs, config: ParityConfig
) -> dict[str, list[tuple[NamedFeed, OutputParity]]]:
    """Return, for every output of the reference, how it fares on each feed."""
    typical_feed = reference.feeds[0]  # recorded samples at the largest batch size where there are some, else the random ones
    judged: dict[str, list[tuple[NamedFeed, OutputParity]]] = {}
    for output in reference.outputs[typical_feed.name][0]:
        tolerance = tolerance_for(output, candidate.precision, config)
        typical = OutputScale()
        for named in reference.feeds:
            references = _arrays(reference, named, output)
            owns = _arrays(own_error, named, output)
            arrays = _arrays(candidate, named, output)
            if references is None or owns is None:
                raise InternalError(
                    "E964", "the reference and its own error do not cover the same outputs", facts={"output": output, "feed": named.name}
                )
            if named is typical_feed:
                typical = measure_scale(references, owns, named.batch)
            if arrays is None or len(arrays) != len(references):
                parity = unmatched_output(output, references, "the candidate does not return this output")
            else:
                parity = judge_output(
                    output, references, owns, arrays, batch=named.batch, precision=candidate.precision, tolerance=tolerance, typical=typical
                )
            judged.setdefault(output, []).append((named, parity))
    return judged


def _arrays(outputs: CandidateOutputs, named: NamedFeed, output: str) -> list[Array] | None:
    batches = outputs.outputs.get(named.name, ())
    return [batch[output] for batch in batches] if batches and all(output in batch for batch in batches) else None


def _shown(judged: Sequence[tuple[NamedFeed, OutputParity]]) -> tuple[NamedFeed, OutputParity]:
    """Return the worst feed: of those that fail; where none does, of the recorded and random ones.

    The smallest tolerance that would have passed is over all feeds, so that it makes the whole output pass.
    """
    failed = [pair for pair in judged if pair[1].outcome is Outcome.FAIL]
    natural = [pair for pair in judged if pair[0].kind != "edge"]
    named, parity = max(failed or natural or judged, key=lambda pair: _badness(pair[1]))
    return named, dataclasses.replace(parity, smallest_rtol=max(other.smallest_rtol for _, other in judged))


def _badness(parity: OutputParity) -> float:
    """Return how much of the tolerance is used; over 1 fails."""
    share = parity.relative_l2 / parity.allowed if parity.allowed else math.inf if parity.relative_l2 else 0.0
    return math.inf if parity.num_nonfinite or math.isnan(share) else max(parity.max_violation, share)


def _edge_remarks(judged: Mapping[str, Sequence[tuple[NamedFeed, OutputParity]]], *, failed: bool) -> list[str]:
    edges = [(_badness(parity), named.name, output) for output, pairs in judged.items() for named, parity in pairs if named.kind == "edge"]
    if failed or not edges:
        return []
    share, feed, output = max(edges)
    return [f"edge samples pass; the worst, {feed}, uses {share:.0%} of the tolerance of {output}"]


def _distances(before: CandidateOutputs, candidate: CandidateOutputs, reference: Reference) -> dict[str, float]:
    """Return, per output, the relative L2 distance to the predecessor over the first feed."""
    named = reference.feeds[0]
    found = {}
    for output in reference.outputs[named.name][0]:
        old, new = _arrays(before, named, output), _arrays(candidate, named, output)
        if old is None or new is None or [a.shape for a in old] != [a.shape for a in new] or not is_floating(old[0]):
            continue
        scale = measure_scale(old, new, named.batch)
        found[output] = scale.own_error
    return found


def _culprit_remark(before: str, distances: Mapping[str, float], shown: Mapping[str, tuple[NamedFeed, OutputParity]]) -> str:
    far = [output for output, distance in distances.items() if distance > shown[output][1].allowed]
    if far or len(distances) < len(shown):
        numbers = ", ".join(f"{output} {distances[output]:.1e}" for output in far) or "not every output can be compared"
        return f"departs from its predecessor {before} too ({numbers}): it broke here"
    return f"agrees with its predecessor {before}: it broke before this stage"


def _batch_invariance(candidate: CandidateOutputs, reference: Reference) -> float | None:
    """Return the largest relative L2 difference between a row run alone and the same row in its batch, None where not run."""
    recorded = [named for named in reference.feeds if named.kind == "recorded"]
    alone = next((named for named in recorded if named.batch == 1), None)
    together = next((named for named in recorded if named.batch > 1), None)
    if alone is None or together is None:
        return None
    worst = 0.0
    for output in reference.outputs[alone.name][0]:
        single, batched = _arrays(candidate, alone, output), _arrays(candidate, together, output)
        if single is None or batched is None or not is_floating(batched[0]) or batched[0].shape[:1] != (together.batch,):
            continue
        rows = values_by_sample(batched, together.batch)
        ones = values_by_sample(single, 1)
        if len(rows) != 1 or len(ones) != 1 or rows[0].shape[1] != ones[0].shape[1]:
            continue
        count = min(len(rows[0]), len(ones[0]), alone.num_samples)
        batched_rows, single_rows = ([row[None] for row in block[0][:count]] for block in (rows, ones))
        worst = max(worst, measure_scale(batched_rows, single_rows, 1).own_max_error)
    return worst


def _repeats(repetition: Repetition) -> str:
    """Return what became of the calls that were run twice, empty where none was."""
    if not repetition.num_calls:
        return ""
    calls = "one call" if repetition.num_calls == 1 else f"each of {repetition.num_calls} calls"
    unlike = ", ".join(f"{count} elements of {output}" for output, count in repetition.differing.items())
    return f"{calls} run twice: {f'{unlike} do not have the same bits' if unlike else 'the same bits'}"


def _unwritten(repetition: Repetition) -> str:
    found = ", ".join(f"{count} elements of {output}" for output, count in repetition.unwritten.items())
    return f"not written by the candidate: {found} over {repetition.num_calls} calls" if found else ""


def _num_samples(feeds: Sequence[NamedFeed]) -> int:
    recorded = [named.num_samples for named in feeds if named.kind == "recorded"]
    return max(recorded, default=0) or sum(named.num_samples for named in feeds if named.kind == "random")


def _localise(localise: Callable[[], str] | None, remarks: list[str]) -> str:
    if localise is None:
        return ""
    try:
        return localise()
    except ModelNotSupported as err:
        remarks.append(f"the layer was not looked for: {err.problem} ({err.facts.get('found', '')})")
        return ""


def _reason(shown: Mapping[str, tuple[NamedFeed, OutputParity]], evidence: ParityEvidence) -> str:
    failed = [pair for pair in shown.values() if pair[1].outcome is Outcome.FAIL]
    named, parity = max(failed or shown.values(), key=lambda pair: _badness(pair[1]))
    more = f"; {len(failed) - 1} more of {len(shown)} outputs fail" if len(failed) > 1 else ""
    if failed:
        needed = max(other.smallest_rtol for _, other in failed)
        passing = f"; it would pass from rtol = atol = floor = {_round_up(needed)} on" if math.isfinite(needed) and needed > 0 else ""
        return f"{parity.output} on {named.name}: {parity.reason}{passing}{more}"
    others = f" (worst of {len(shown)} outputs)" if len(shown) > 1 else ""
    note = "; random inputs only" if "random inputs only" in evidence.remarks else ""
    numbers = f"relative L2 {parity.relative_l2:.1e} (own error {parity.own_error:.1e}, allowed {parity.allowed:.1e})"
    return f"{parity.output}{others}: {numbers}, max |c - r| {parity.max_abs:.1e}{note}"


def _round_up(value: float) -> str:
    """Return ``value`` with two digits, rounded up, so that the printed tolerance passes."""
    exponent = math.floor(math.log10(value)) - 1
    return f"{math.ceil(value / 10.0**exponent) * 10.0**exponent:.1e}"
