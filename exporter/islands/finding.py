"""Search one workspace for its islands: make a candidate, judge it by parity, bisect, confirm.

The float32 model is exported once. Each trial is that model in half precision with other nodes kept in float32, judged by the verdict of parity
itself. A trial that would store a value beyond float16 fails without a build, since the export refuses it. What is found is exported, and built,
once more with the configuration that is handed out.
"""

from __future__ import annotations

import glob
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifacts import Outcome, Verdict, worst
from exporter.config import OnnxConfig
from exporter.errors import ConfigError, EngineBuildError, EnvironmentLacking, ModelNotSupported
from exporter.gates import Candidate, Gates, Judge
from exporter.half_range import beyond_float16
from exporter.islands.candidates import SEARCH_LEVEL, CandidateMaker, EngineMaker, OnnxMaker
from exporter.islands.search import Found, OutOfTrialsError, smallest_set
from exporter.workspace import Workspace

if TYPE_CHECKING:
    from exporter.onnx_export import Trials

__all__ = ["FoundIslands", "Island", "find_islands"]

BUILDS, ENGINE_BUILDS = 200, 60
"""Most candidates that are judged, where nothing else is said; an engine takes longer to build than a model to write."""
_HALVES = ("float16", "bfloat16")
_OLDEST_OPSET = 18
"""What opset 17 is made from."""
_NO_SUCH_PRECISION = "E507"


@dataclass(frozen=True, slots=True)
class Island:
    """A node that stays in float32.

    Attributes:
        module: that it comes from; empty where it is of the model's own forward.
        why: how parity failed without it, empty where that was not tried.
    """

    node: str
    op: str
    module: str
    why: str


@dataclass(frozen=True, slots=True)
class FoundIslands:
    """What a search found.

    Attributes:
        candidate: ``onnx`` or ``tensorrt``.
        outcome: PASS, a set that passes and of which each is needed, or none is; INCONCLUSIVE, a set that passes, and the limit was reached;
            FAIL, what the search found did not pass in the end.
        float32: the value for ``[onnx] float32``, with what stood there before.
        num_nodes: nodes that were in half precision before.
        num_builds: candidates that were made and judged, without the last one.
        verified, not_verified: sentences.
        verdicts: parity of the candidate made with ``float32``.
    """

    candidate: str
    precision: str
    outcome: Outcome
    float32: tuple[str, ...]
    islands: tuple[Island, ...]
    num_nodes: int
    num_builds: int
    verified: tuple[str, ...]
    not_verified: tuple[str, ...]
    verdicts: tuple[Verdict, ...]


def find_islands(workspace: Workspace, *, engine: bool = False, builds: int | None = None) -> FoundIslands:
    """Return the nodes that have to stay in float32 beside those that do already.

    Args:
        workspace: its configuration asks for half precision. Nothing but weights and graph is left in its folder.
        engine: judge TensorRT engines instead of ONNX models.
        builds: most candidates that are judged while searching, at least 2; None means 200, or 60 engines.

    Raises:
        ConfigError: the precision is none with islands (E566), or a pattern of ``[onnx] float32`` matches nothing (E456).
        ModelNotSupported: parity fails with every node in float32 as well (E565), passes only so (E567), or nothing smaller had been found
            when the limit was reached (E568).
        EnvironmentLacking: ``engine``, and TensorRT or a GPU is missing.
    """
    from exporter.onnx_export import Trials

    config = workspace.config
    if config.onnx.precision not in _HALVES:
        facts = {"at": "onnx -> precision", "found": config.onnx.precision, "expected": " or ".join(_HALVES)}
        problem = "islands are searched for in half precision only"
        raise ConfigError("E566", problem, facts=facts, help='[onnx] precision = "float16"')
    if engine:
        workspace.require_engine()
    builds = builds if builds is not None else ENGINE_BUILDS if engine else BUILDS
    judge = Gates(workspace).judge()
    workspace.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{workspace.stem}.islands-", dir=workspace.folder) as name:
        folder = Path(name)
        maker: CandidateMaker = EngineMaker(config, folder, workspace) if engine else OnnxMaker(config)
        wide = config.onnx.replace(precision="float32", float32=(), opset=max(config.onnx.opset, _OLDEST_OPSET))
        trials = Trials(_beside(workspace, wide, folder / "float32").onnx, config.onnx.precision, config.onnx.float32)
        work = _Work(workspace, judge, maker, trials, folder, builds)
        found = smallest_set([node.name for node in trials.nodes], work.fails, start=work.start)
        if found.items is None:
            raise _hopeless(found, config.onnx.precision)
        if found.items and not trials.without(frozenset(found.items)):
            raise _nothing_left(found, config.onnx.precision, builds)
        float32 = (*config.onnx.float32, *_patterns(trials, found.items))
        final = maker.final(_beside(workspace, config.onnx.replace(float32=float32), folder / "final"))
        verdicts, lacking = _judged(judge, final)
    outcome = worst(verdicts)
    if outcome is Outcome.PASS and not found.is_minimal:
        outcome = Outcome.INCONCLUSIVE
    verified, not_verified = _claims(found, outcome, workspace, engine=engine, builds=builds)
    return FoundIslands(
        candidate=maker.name,
        precision=config.onnx.precision,
        outcome=outcome,
        float32=float32,
        islands=tuple(Island(node.name, node.op, node.module, found.why.get(node.name, "")) for node in trials.nodes if node.name in found.items),
        num_nodes=len(trials.nodes),
        num_builds=work.num_builds,
        verified=verified,
        not_verified=(*not_verified, *(f"parity by {provider}, which this machine lacks" for provider in lacking)),
        verdicts=verdicts,
    )


def _beside(workspace: Workspace, onnx: OnnxConfig, folder: Path) -> Workspace:
    """Return a workspace with the same graph and another ONNX model."""
    tensorrt = workspace.config.tensorrt.replace(cache_mib=0, stripped=False, reproducible=False)
    beside = Workspace(workspace.config.replace(onnx=onnx, tensorrt=tensorrt), folder=folder, progress=workspace.progress)
    beside.weights, beside.graph = workspace.weights, workspace.graph
    return beside


class _Work:
    """Makes and judges one trial after the other."""

    def __init__(self, workspace: Workspace, judge: Judge, maker: CandidateMaker, trials: Trials, folder: Path, builds: int) -> None:
        self._workspace, self._judge, self._maker, self._trials = workspace, judge, maker, trials
        self._folder, self._builds, self.num_builds = folder, builds, 0
        self._beyond: dict[str, str] = {}
        self.start: tuple[str, ...] = ()
        """Nodes that make or read a value beyond float16, on samples or on edge samples alone."""
        if workspace.config.onnx.precision == "float16":
            typed = trials.typed(folder / "typed.onnx")
            ranges = () if typed is None else beyond_float16(workspace.config, workspace.samples, typed)
            self._beyond = {found.tensor: f"{found.tensor} ({found.op}) reaches {found.largest:.3g}, beyond float16" for found in ranges}
            edges = () if typed is None else beyond_float16(workspace.config, workspace.samples, typed, edge=True)
            self.start = trials.touching(found.tensor for found in edges)

    def fails(self, kept: frozenset[str]) -> str:
        """Return how parity fails with these nodes in float32."""
        beyond = sorted(self._trials.without(kept) & set(self._beyond)) if self._beyond else []
        if beyond:
            return self._beyond[beyond[0]]
        if self.num_builds >= self._builds:
            raise OutOfTrialsError
        if not self._workspace.progress(f"islands of {self._maker.name}", self.num_builds, self._builds):
            raise KeyboardInterrupt
        self.num_builds += 1
        try:
            candidates = self._maker.searched(self._trials.make(kept, self._folder / "trial.onnx"))
        except EngineBuildError as err:
            if err.code != _NO_SUCH_PRECISION:
                raise
            return f"{err.problem} ({err.facts.get('found', '')})"
        return next((verdict.reason for verdict in _judged(self._judge, candidates)[0] if verdict.outcome is not Outcome.PASS), "")


def _judged(judge: Judge, candidates: tuple[Candidate, ...]) -> tuple[tuple[Verdict, ...], tuple[str, ...]]:
    """Return the verdicts, and the providers of ONNX Runtime that this machine lacks; one at least has to be there."""
    verdicts, lacking = [], []
    for candidate in candidates:
        try:
            verdicts.append(judge(candidate)[0])
        except EnvironmentLacking:
            lacking.append(candidate.provider)
            if not candidate.provider or len(lacking) == len(candidates):
                raise
    return tuple(verdicts), tuple(lacking)


def _patterns(trials: Trials, names: Iterable[str]) -> tuple[str, ...]:
    """Return names for ``[onnx] float32``: a module where all of its nodes are meant, else the node."""
    chosen = set(names)
    of_module = Counter(node.module for node in trials.nodes)
    meant = Counter(node.module for node in trials.nodes if node.name in chosen)
    whole = {module for module, count in meant.items() if module and count == of_module[module]}
    named = [node.module if node.module in whole else node.name for node in trials.nodes if node.name in chosen]
    return tuple(dict.fromkeys(glob.escape(name) for name in named))


def _hopeless(found: Found[str], precision: str) -> ModelNotSupported:
    facts = {"found": found.hopeless, "expected": "parity that passes with every node in float32"}
    help_text = 'with [onnx] precision = "float32", exporter check says which layer departs first'
    return ModelNotSupported("E565", f"no island saves this network in {precision}: it fails with all in float32 too", facts=facts, help=help_text)


def _nothing_left(found: Found[str], precision: str, builds: int) -> ModelNotSupported:
    if found.is_minimal:
        facts = {"found": next(iter(found.why.values()), "")}
        problem = f"every node has to stay in float32; nothing of the network would be left in {precision}"
        return ModelNotSupported("E567", problem, facts=facts, help='[onnx] precision = "float32"')
    facts = {"found": f"{builds} builds", "known": f"parity passes with all {len(found.items or ())} nodes in float32"}
    return ModelNotSupported(
        "E568", "too few builds to find a set of islands; nothing is known but the two ends", facts=facts, help=f"--builds {2 * builds}"
    )


def _claims(found: Found[str], outcome: Outcome, workspace: Workspace, *, engine: bool, builds: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what was seen, and what was not."""
    config, items = workspace.config, found.items or ()
    level = config.tensorrt.optimization_level
    is_quick = engine and level > SEARCH_LEVEL
    made = f"built at optimization level {level}" if engine else "exported"
    verified, not_verified = [], []
    if outcome is Outcome.FAIL:
        not_verified.append(f"that parity passes: it did while searching, and fails {made} with this configuration")
    elif items:
        verified.append(f"parity passes, {made} with this configuration")
    else:
        verified.append(f"parity passes, {made} with the configuration as it is")
    if items and found.is_minimal:
        verified.append("without any one of them it fails" + (f", at optimization level {SEARCH_LEVEL}" if is_quick else ""))
        not_verified.append("that no other set is smaller; it follows where more nodes in float32 do no harm")
    if items and not found.is_minimal:
        looked_at = sum(name in found.why for name in items)
        not_verified.append(f"that each of them is needed: the limit of {builds} builds was reached, {looked_at} of {len(items)} were looked at")
    if config.onnx.float32:
        not_verified.append("that what [onnx] float32 names already is needed")
    return tuple(verified), tuple(not_verified)
