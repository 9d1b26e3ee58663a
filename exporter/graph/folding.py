"""The stage: an exported program -> the same program with every BatchNorm folded that has an exact fold."""

from __future__ import annotations

import collections
import dataclasses

from torch.export import ExportedProgram

from exporter.artifacts import Folded, Graph, Provenance, Refusal, RefusalReason
from exporter.config import FoldConfig
from exporter.errors import FoldError, InternalError
from exporter.factories import installed_version
from exporter.graph.aten.constants import Computed, compute_constants, with_exact
from exporter.graph.aten.normalising import Normalised, normalised_program
from exporter.graph.aten.reading import ProgramConstants, abstract_graph, count_batch_norms, count_calls, nested_batch_norms
from exporter.graph.aten.surgery import folded_program
from exporter.graph.explaining import sketch_of
from exporter.graph.planning import Plan, make_plan
from exporter.graph.replay.document import FoldPlan
from exporter.graph.replay.recording import recorded
from exporter.graph.tracing import Traced

__all__ = ["fold", "fold_recorded"]


def fold(traced: Traced, config: FoldConfig, *, provenance: Provenance) -> Graph:
    """Fold the BatchNorms of ``traced``; what is not folded is refused by name.

    Args:
        traced: the network; it is left as it is.
        config: ``enabled`` and the patterns of what to ``keep``.
        provenance: what the network was made from; versions and the numbers of folds are added.

    Raises:
        FoldError: the normalisation of an input cannot be folded (E365).
        ConfigError: it is none, or fits no input (E366, E367).
        InternalError: the folded program does not pass torch's verifier, or differs from the plan (E391, E392).
    """
    return fold_recorded(traced, config, provenance=provenance)[0]


def fold_recorded(traced: Traced, config: FoldConfig, *, provenance: Provenance) -> tuple[Graph, FoldPlan | FoldError]:
    """Fold as ``fold`` does, and return the plan to be applied again too, or why there is none."""
    normalised = normalised_program(traced.program, traced.inputs, config.input)
    program = normalised.program
    computed = with_exact(compute_constants(program), normalised.exact)
    abstract = abstract_graph(computed.program)
    num_seen, sketch = len(abstract.batch_norms()), sketch_of(abstract)
    plan = make_plan(abstract, ProgramConstants(computed.program, computed.exact), config, required=tuple(normalised.calls))
    _require_inside(plan, normalised, config)
    nested = [
        Refusal(name, RefusalReason.NOT_LINEAR, (), "it stands in a nested graph (torch.cond, or a part that runs with another grad mode)")
        for name in nested_batch_norms(program)
    ]
    folded = folded_program(computed.program, plan)
    num_left = count_batch_norms(folded)
    _check_against_plan(plan, num_seen, num_left)
    record = _recorded(program, computed, plan, folded)
    ahead = tuple(Folded(name, "a constant", "constant", 0, 1.0, "constant") for name in computed.batch_norms)
    plan = dataclasses.replace(plan, folded=(*ahead, *plan.folded), refusals=(*plan.refusals, *nested))
    num_batch_norms = num_seen + len(nested) + len(ahead) + plan.num_affine
    graph = Graph(
        unfused=program,
        folded_program=folded,
        inputs=traced.inputs,
        outputs=traced.outputs,
        folded=plan.folded,
        refusals=plan.refusals,
        num_batch_norms=num_batch_norms,
        ops_before=count_calls(program),
        ops_after=count_calls(folded),
        provenance=_extended(provenance, plan, num_batch_norms, config),
        sketch=sketch,
        cost_before=plan.cost_before,
        cost_after=plan.cost_after,
        absorbed=plan.absorbed,
    )
    return graph, record


def _recorded(program: ExportedProgram, computed: Computed, plan: Plan, folded: ExportedProgram) -> FoldPlan | FoldError:
    try:
        return recorded(program, computed, plan, folded)
    except FoldError as err:
        return err


def _check_against_plan(plan: Plan, num_before: int, num_after: int) -> None:
    if num_after != num_before - (len(plan.folded) - plan.num_affine) or num_after != len(plan.refusals):
        found = f"{num_before} BatchNorms before, {num_after} after, {len(plan.folded)} folded, {len(plan.refusals)} refused"
        raise InternalError("E392", "the folded program differs from the plan", facts={"found": found})


def _require_inside(plan: Plan, normalised: Normalised, config: FoldConfig) -> None:
    """Refuse where the normalisation of an input is not inside the network."""
    for call, refusal in plan.missed.items():
        facts = {"input": normalised.calls[call], "found": ", ".join(config.input), "because": f"{refusal.reason.value}; {refusal.detail}"}
        help_text = "normalise before the network, and leave out --fold-input"
        raise FoldError("E365", "the normalisation of an input cannot be folded exactly", facts=facts, help=help_text)


def _extended(provenance: Provenance, plan: Plan, num_batch_norms: int, config: FoldConfig) -> Provenance:
    reasons = collections.Counter(refusal.reason.name.lower() for refusal in plan.refusals)
    lineage = {
        **provenance.lineage,
        "batch_norms": str(num_batch_norms),
        "folded": str(len(plan.folded)),
        "refused": str(len(plan.refusals)),
    }
    if config.input:
        lineage["input_normalised_inside"] = " ; ".join(config.input)
    if plan.absorbed:
        lineage["absorbed"] = str(len(plan.absorbed))
    if reasons:
        lineage["refused_for"] = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    versions = {**{name: installed_version(name) for name in ("exporter", "torch")}, **provenance.versions}
    return dataclasses.replace(provenance, lineage=lineage, versions=versions)
