"""The whole job on one screen: checkpoint -> weights -> graph -> ONNX -> engine -> verdict -> report."""

from __future__ import annotations

import dataclasses
import datetime
import time
from pathlib import Path

from exporter.artifacts import Report, Verdict, to_json, worst
from exporter.config import Config
from exporter.environment import describe_environment
from exporter.gates import Gates, candidates_of
from exporter.report import write_report
from exporter.verify import HISTOGRAM_EDGES
from exporter.workspace import Progress, Workspace

__all__ = ["run"]


def run(config: Config, *, progress: Progress | None = None) -> tuple[Report, Path]:
    """Do every stage that is out of date, judge the artefacts, and write a report.

    Returns:
        The report and its folder. A failed verdict is in the report, not an exception.

    Raises:
        ExporterError: an input was refused, the model is not supported, or something required is missing.
    """
    started, clock = datetime.datetime.now().astimezone(), time.perf_counter()
    workspace = Workspace(config, progress=progress) if progress else Workspace(config)
    if config.tensorrt.required:
        workspace.require_engine()

    weights, graph, onnx, plan = workspace.weights, workspace.graph, workspace.onnx, workspace.plan
    gates = Gates(workspace)
    chain = [*candidates_of(graph, config), *candidates_of(onnx, config)]
    missing: tuple[Verdict, ...] = ()
    if plan is None:
        missing = gates.engine_not_run()
    else:
        if workspace.onnx_opset17 is not None:
            between = candidates_of(workspace.onnx_opset17, config, name="onnx-opset17")
            chain += [dataclasses.replace(candidate, is_delivered=False) for candidate in between]
        chain += candidates_of(plan, config)
    delivered = tuple(candidate for candidate in chain if candidate.is_delivered)

    verdicts = gates.parity(tuple(chain)) + gates.ranges() + gates.structure()
    if config.latency.enabled:
        verdicts += gates.latency(delivered)
    verdicts += gates.metric(tuple(chain)) + missing

    report = Report(
        run=_next_run(config.work_dir / "runs", started.date()),
        started=started.isoformat(timespec="seconds"),
        seconds=time.perf_counter() - clock,
        outcome=worst(verdicts),
        stages=tuple(workspace.records),
        verdicts=verdicts,
        lineage=workspace.lineage(),
        config=to_json(config.to_json()),
        environment=describe_environment(workspace.engine_support),
        bake=weights.summary,
        folded=graph.folded,
        refusals=graph.refusals,
        absorbed=graph.absorbed,
        sketch=graph.sketch,
        costs=(graph.cost_before, graph.cost_after),
        histogram_edges=HISTOGRAM_EDGES,
    )
    folder = config.work_dir / "runs" / report.run
    write_report(report, folder)
    return report, folder


def _next_run(runs: Path, day: datetime.date) -> str:
    """Return the name of a run folder that is not taken: ``2026-11-21-1``, ``2026-11-21-2``, ..."""
    number = 1
    while (runs / f"{day.isoformat()}-{number}").exists():
        number += 1
    return f"{day.isoformat()}-{number}"
