"""Judge the artefacts of a workspace: parity of every candidate, latency of what is delivered, the task metric.

reference  unfused model, baked weights, float64, torch on the CPU
chain      torch-unfused -> torch-fused -> onnx -> tensorrt     (each is compared with the reference and with its predecessor)
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from exporter.artifacts import EIGHT_BIT, Graph, OnnxModel, Outcome, ParityEvidence, Plan, Profile, TensorSpec, Verdict
from exporter.config import Config
from exporter.errors import ArtifactError, ConfigError, EnvironmentLacking, ModelNotSupported
from exporter.files import digest_of_settings
from exporter.half_range import range_verdict
from exporter.runners import Runner
from exporter.verify import CandidateOutputs, NamedFeed, OwnError, Reference
from exporter.workspace import Workspace

if TYPE_CHECKING:
    from torch import nn

Precision: TypeAlias = Literal["float64", "float32", "float16", "bfloat16"]
Device: TypeAlias = Literal["cpu", "cuda"]

__all__ = ["Candidate", "Gates", "Judge", "candidates_of", "named_candidates", "require_measured"]

UNFUSED = "torch-unfused"
_REFITTABLE = "a refittable engine is slower than the one that is delivered: build it without [tensorrt] refittable to race it"
_DEBUGGED = "an engine that hands out its tensors is none that is delivered: build it without [tensorrt] debug_tensors to race it"
_CPU = "CPUExecutionProvider"
_HALVES = {"float16", "bfloat16"}
"""Precisions that ONNX Runtime does not compute in on the CPU: every value is rounded instead, and such a candidate does not race."""
_UNOPTIMISED = {"fp8"}
"""Precisions that ONNX Runtime computes in float32, operator after operator."""
_EMULATED = "the CPU emulates this precision: race an engine, or CUDAExecutionProvider under [onnxruntime] providers"


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something to be judged: its name, how to open it, whether it is what gets shipped, the profiles of an engine, and why it is not raced.

    Attributes:
        provider: of ONNX Runtime, one that a machine may lack; such a candidate is NOT_RUN there.
        plan: of an engine.
    """

    name: str
    open: Callable[[], Runner]
    is_delivered: bool = True
    profiles: tuple[Profile, ...] = ()
    not_raced: str = ""
    provider: str = ""
    plan: Plan | None = None


def candidates_of(artefact: Graph | OnnxModel | Plan, config: Config, *, name: str = "") -> tuple[Candidate, ...]:
    """Return the ways in which ``artefact`` can be run on this machine: an ONNX model once per configured provider.

    Args:
        name: instead of ``torch-fused``, ``onnx`` or ``tensorrt``.
    """
    if isinstance(artefact, Graph):
        return (Candidate(name or "torch-fused", lambda: _torch_runner(artefact, config, name or "torch-fused"), is_delivered=False),)
    if isinstance(artefact, Plan):
        own, not_raced = name or "tensorrt", _REFITTABLE if artefact.refittable else _DEBUGGED if artefact.debug_tensors else ""
        return (Candidate(own, lambda: _tensorrt_runner(artefact, config, own), profiles=artefact.profiles, not_raced=not_raced, plan=artefact),)
    found = []
    for provider in config.onnxruntime.providers:
        short = provider.removesuffix("ExecutionProvider").lower()
        own = (name or "onnx") + ("" if short == "cpu" else f"-{short}")
        is_emulated = (provider == _CPU and artefact.precision in _HALVES) or artefact.precision in _UNOPTIMISED
        lacked = "" if provider == _CPU else provider
        found.append(Candidate(own, _opener(artefact, config, own, provider), not_raced=_EMULATED if is_emulated else "", provider=lacked))
    return tuple(found)


class Gates:
    """The reference of one workspace, measured once, and the verdicts against it."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.config = workspace.config

    # ---------------------------------------------------------------------------------------------------------------
    # parity

    def parity(self, candidates: tuple[Candidate, ...]) -> tuple[Verdict, ...]:
        """Compare every candidate with the float64 reference and with the candidate before it."""
        judge = self.judge(candidates)
        verdicts = []
        predecessor = None
        for index, candidate in enumerate(candidates):
            self._tell("parity", index, len(candidates))
            try:
                verdict, predecessor = judge(candidate, predecessor=predecessor, localise=self._localiser(candidate))
            except EnvironmentLacking as err:
                verdict = self._lacking("parity", candidate, err)
            verdicts.append(self._pointed(verdict))
        self._tell("parity", len(candidates), len(candidates))
        return tuple(verdicts)

    def _pointed(self, verdict: Verdict) -> Verdict:
        """Say in a FAIL of half precision how the layers are found that have to stay in float32."""
        evidence, precision = verdict.evidence, self.config.onnx.precision
        command = {"onnx": "check", "tensorrt": "build-trt"}.get(verdict.subject)
        if verdict.outcome is not Outcome.FAIL or command is None or precision not in _HALVES:
            return verdict
        if not isinstance(evidence, ParityEvidence) or evidence.precision != precision:
            return verdict
        remark = f"which layers have to stay in float32: exporter {command} --find-islands"
        return dataclasses.replace(verdict, evidence=dataclasses.replace(evidence, remarks=(*evidence.remarks, remark)))

    def judge(self, candidates: tuple[Candidate, ...] = ()) -> Judge:
        """Return what compares one candidate after the other with the float64 reference, at the shapes of all their profiles."""
        feeds = self._feeds(tuple(profile for candidate in candidates for profile in candidate.profiles))
        return Judge(self._reference(feeds), self._own_error, self.config)

    def _feeds(self, profiles: tuple[Profile, ...] = ()) -> tuple[NamedFeed, ...]:
        from exporter.verify import make_feeds

        profiles = (*self._profiles(), *profiles)
        return make_feeds(self.workspace.samples, self._inputs(), self.config.samples, self.config.parity, profiles=profiles)

    def _profiles(self) -> tuple[Profile, ...]:
        """Return the profiles that an engine has, or would have: every candidate is judged at their shapes."""
        try:
            return self.workspace.profiles(self._inputs())
        except ConfigError as err:
            if err.code != "E516":  # nothing says how large an axis is; whoever needs to know asks for samples
                raise
            return ()

    def _inputs(self) -> tuple[TensorSpec, ...]:
        """Return the inputs as every candidate takes them: with a batch of one where the exported model has a fixed batch."""
        inputs = self.workspace.graph.inputs
        if self.config.onnx.dynamic_batch:
            return inputs
        return tuple(dataclasses.replace(spec, shape=(1, *spec.shape[1:])) for spec in inputs)

    def _reference(self, feeds: tuple[NamedFeed, ...]) -> Reference:
        from exporter.factories import model_identity
        from exporter.verify import digest_of_feeds, load_reference, measure_reference, save_reference

        workspace = self.workspace
        identity = model_identity(workspace.model, base=self.config.base)
        outputs = list(self.config.model.outputs)
        parts = {"weights": workspace.weights.digest.hex, "model": identity, "feeds": digest_of_feeds(feeds), "outputs": outputs}
        parts |= {"input": list(self.config.fold.input)} if self.config.fold.input else {}
        key = digest_of_settings(parts).hex
        path = workspace.folder / f"{workspace.stem}.reference.npz"
        cached = load_reference(path, key=key)
        if cached is not None:
            return cached
        with self._unfused("float64") as runner:
            try:
                reference = measure_reference(runner, feeds)
            except ModelNotSupported as err:
                if err.code != "E621":
                    raise
                with self._unfused("float32") as fallback:  # an operator has no float64 kernel; the report says so
                    reference = measure_reference(runner, feeds, fallback=fallback)
        save_reference(reference, path, key=key)
        return reference

    def _own_error(self, reference: Reference, candidate: Runner) -> OwnError:
        from exporter.runners import EightBitTorchRunner
        from exporter.verify import measure_own_error

        if candidate.precision not in EIGHT_BIT:
            return self._own_error_of_torch(reference, precision_of(candidate))
        graph, threads = self.workspace.graph, self.config.latency.threads
        names = tuple(spec.name for spec in graph.outputs)
        with EightBitTorchRunner(UNFUSED, self.workspace.module(), graph.inputs, names, precision=candidate.precision, threads=threads) as rounded:
            return measure_own_error(reference, rounded)

    def _own_error_of_torch(self, reference: Reference, precision: Precision) -> OwnError:
        from exporter.verify import measure_own_error, without_overflow

        with self._unfused(precision) as runner:
            own = measure_own_error(reference, runner)
        return without_overflow(reference, own, lambda: self._unfused("bfloat16"))

    def _localiser(self, candidate: Candidate) -> Callable[[], str] | None:
        if candidate.name == "torch-fused":
            from exporter.verify import localise

            return lambda: localise(self.workspace.graph, self._feeds())
        if candidate.name == "onnx":
            from exporter.verify import localise_onnx

            return lambda: localise_onnx(self.workspace.graph, self.workspace.onnx, self._feeds())
        plan = candidate.plan
        return (lambda: self._localise_in(plan)) if plan is not None and plan.debug_tensors else None

    def _localise_in(self, plan: Plan) -> str:
        from exporter.runners import TensorrtRunner
        from exporter.verify import localise_engine

        model = self.workspace.onnx
        if plan.provenance.made_from.get("onnx") != str(model.digest):
            facts = {"found": "it was built from another ONNX file than that of the settings", "file": plan.path}
            raise ModelNotSupported("E528", "the engine cannot be searched tensor by tensor", facts=facts)
        with TensorrtRunner(plan, self.config.tensorrt) as runner:
            return localise_engine(runner.observe, plan, model, self._feeds(plan.profiles), tf32=bool(plan.provenance.settings.get("tf32")))

    def structure(self) -> tuple[Verdict, ...]:
        """Judge the folded graph by what is left, what came in and what it costs."""
        from exporter.graph import check_structure

        return (check_structure(self.workspace.graph, self.config.fold),)

    def ranges(self) -> tuple[Verdict, ...]:
        """Judge how the network lies in the range of float16, as it was measured before the file was written; nothing where that was no question."""
        ranges = self.workspace.onnx.ranges
        return () if ranges is None else (range_verdict(ranges),)

    # ---------------------------------------------------------------------------------------------------------------
    # latency

    def latency(self, candidates: tuple[Candidate, ...]) -> tuple[Verdict, ...]:
        """Race every candidate against the unfused model in torch, on the device of the candidate."""
        from exporter.verify import latency_feed, race

        samples, batch = self.workspace.samples, self.config.latency.batch
        feed = latency_feed(samples, self._inputs(), self.config.samples, batch=batch, profiles=self._profiles())
        verdicts = []
        for candidate in candidates:
            if candidate.not_raced:
                verdicts.append(Verdict("latency", candidate.name, Outcome.NOT_RUN, candidate.not_raced, required=False))
                continue
            try:
                with candidate.open() as runner, self._contestant(runner) as reference:
                    verdicts.append(race(reference, runner, feed, self.config.latency, progress=self._race_progress(candidate.name)))
            except EnvironmentLacking as err:
                verdicts.append(self._lacking("latency", candidate, err))
        return tuple(verdicts)

    def _race_progress(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: self._tell(f"latency {name}", done, total)

    # ---------------------------------------------------------------------------------------------------------------
    # metric

    def metric(self, candidates: tuple[Candidate, ...]) -> tuple[Verdict, ...]:
        """Measure the task metric of raw and chosen weights and of every candidate; nothing where none is configured."""
        from exporter.verify import measure_metric

        samples = self.workspace.samples
        if samples is None or not (self.config.metric.function or samples.labels is not None):
            return ()
        chosen = self.workspace.weights.summary.choice.partition(":")[0]
        with contextlib.ExitStack() as stack:
            runners: dict[str, Runner] = {}
            raw = self.workspace.raw_weights
            if raw is not None:
                module = self.workspace.module(raw)
                runners["raw"] = stack.enter_context(self._torch(module, "raw", "float32", "cpu"))
            runners[chosen] = stack.enter_context(self._unfused("float32"))
            for candidate in candidates:
                with contextlib.suppress(EnvironmentLacking) if candidate.provider else contextlib.nullcontext():  # parity says that it did not run
                    runners[candidate.name.removeprefix("torch-")] = stack.enter_context(candidate.open())
            self._tell("metric", 0, 1)
            verdicts = measure_metric(runners, samples, self.config.metric, reference=chosen, base=self.config.base)
        self._tell("metric", 1, 1)
        return verdicts

    # ---------------------------------------------------------------------------------------------------------------
    # what did not run

    def _lacking(self, check: str, candidate: Candidate, err: EnvironmentLacking) -> Verdict:
        """Return NOT_RUN for a provider of ONNX Runtime that this machine does not have; what a person named in an artefact is an error."""
        from exporter.verify import not_run

        if not candidate.provider:
            raise err
        return not_run(check, candidate.name, err, self.config.onnxruntime)

    def engine_not_run(self) -> tuple[Verdict, ...]:
        """Return the verdicts of an engine that this machine cannot build."""
        support = self.workspace.engine_support
        reason = f"{support.missing} (exporter doctor says more)"
        required = self.config.tensorrt.required
        return tuple(Verdict(check, "tensorrt", Outcome.NOT_RUN, reason, required=required) for check in ("parity", "latency"))

    # ---------------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _unfused(self, precision: Precision, *, device: Device = "cpu", cuda_graph: bool = False) -> Iterator[Runner]:
        """Open the unfused model, rebuilt from its factory with the baked weights."""
        module = self.workspace.module()
        with self._torch(module, UNFUSED if precision != "float64" else "reference", precision, device, cuda_graph=cuda_graph) as runner:
            yield runner

    def _contestant(self, candidate: Runner) -> contextlib.AbstractContextManager[Runner]:
        """Return the unfused model as it races ``candidate``: in its precision, on its device, in a CUDA graph where the candidate may be in one."""
        return self._unfused(precision_of(candidate), device=_device_of(candidate), cuda_graph=getattr(candidate, "cuda_graph", False))

    def _torch(self, module: nn.Module, name: str, precision: Precision, device: Device, *, cuda_graph: bool = False) -> Runner:
        from exporter.runners import TorchRunner

        graph = self.workspace.graph
        outputs = tuple(spec.name for spec in graph.outputs)
        threads = self.config.latency.threads
        runner: Runner = TorchRunner(name, module, graph.inputs, outputs, precision=precision, device=device, threads=threads, cuda_graph=cuda_graph)
        return runner

    def _tell(self, what: str, done: int, total: int) -> None:
        if not self.workspace.progress(what, done, total):
            raise KeyboardInterrupt


class Judge:
    """Parity of single candidates: the reference is there, and the own error is measured once for each precision."""

    def __init__(self, reference: Reference, own_error: Callable[[Reference, Runner], OwnError], config: Config) -> None:
        self._reference, self._own_error, self._config = reference, own_error, config
        self._own: dict[str, OwnError] = {}

    def __call__(
        self, candidate: Candidate, *, predecessor: CandidateOutputs | None = None, localise: Callable[[], str] | None = None
    ) -> tuple[Verdict, CandidateOutputs]:
        """Run ``candidate`` and return its verdict and its outputs; see ``compare``."""
        from exporter.verify import collect_outputs, compare

        with candidate.open() as runner:
            taken = _taken(self._reference, candidate)
            if runner.precision not in self._own:
                self._own[runner.precision] = self._own_error(self._reference, runner)
            outputs = collect_outputs(runner, taken.feeds)
            verdict = compare(
                taken,
                self._own[runner.precision],
                runner,
                self._config.parity,
                predecessor=predecessor,
                outputs=outputs,
                samples_required=self._config.samples.required,
                localise=localise,
            )
        return verdict, outputs


def _taken(reference: Reference, candidate: Candidate) -> Reference:
    """Return the reference on the feeds that the candidate can take: those within one of an engine's profiles."""
    from exporter.verify.profile_shapes import takes

    if not candidate.profiles:
        return reference
    feeds = tuple(named for named in reference.feeds if takes(candidate.profiles, {name: a.shape for name, a in next(named.chunks()).items()}))
    left = [named.name for named in reference.feeds if named not in feeds]
    remarks = (*reference.remarks, *([f"outside the profiles of the engine, not run: {', '.join(left)}"] if left else []))
    return dataclasses.replace(reference, feeds=feeds, remarks=remarks)


def precision_of(runner: Runner) -> Precision:
    """Return the precision in which the runner's own error is measured, and in which its contestant runs."""
    return next((name for name in get_args(Precision) if name == runner.precision), "float32")


def _device_of(runner: Runner) -> Device:
    return "cuda" if runner.device == "cuda" else "cpu"


def _torch_runner(graph: Graph, config: Config, name: str) -> Runner:
    from exporter.runners import TorchRunner

    outputs = tuple(spec.name for spec in graph.outputs)
    runner: Runner = TorchRunner(name, graph.folded_program, graph.inputs, outputs, threads=config.latency.threads)
    return runner


def _opener(model: OnnxModel, config: Config, name: str, provider: str) -> Callable[[], Runner]:
    def open_onnx_runner() -> Runner:
        from exporter.runners import OnnxruntimeRunner, RoundedOnnxRunner

        if provider == _CPU and model.precision in _HALVES:
            return RoundedOnnxRunner(model, name=name, threads=config.latency.threads)
        runner: Runner = OnnxruntimeRunner(model, name=name, provider=provider, threads=config.latency.threads)
        return runner

    return open_onnx_runner


def _tensorrt_runner(plan: Plan, config: Config, name: str) -> Runner:
    from exporter.runners import TensorrtRunner

    runner: Runner = TensorrtRunner(plan, config.tensorrt, name=name)
    return runner


def named_candidates(artefacts: tuple[tuple[Path, Graph | OnnxModel | Plan], ...], config: Config) -> tuple[Candidate, ...]:
    """Return the candidates of artefacts named on the command line, with names that stay unique."""
    found: dict[str, Candidate] = {}
    for path, artefact in artefacts:
        plain = candidates_of(artefact, config)
        taken = any(candidate.name in found for candidate in plain)
        for candidate in candidates_of(artefact, config, name=str(path)) if taken else plain:
            if candidate.name in found:
                raise ArtifactError("E733", "an artefact is named twice", facts={"file": path})
            found[candidate.name] = candidate
    return tuple(found.values())


def require_measured(verdicts: tuple[Verdict, ...]) -> None:
    """Refuse to end well where a required check did not run.

    Raises:
        EnvironmentLacking: names the first such check and its reason.
    """
    for verdict in verdicts:
        if verdict.required and verdict.outcome is Outcome.NOT_RUN:
            raise EnvironmentLacking("E899", f"a required check did not run: {verdict.check} of {verdict.subject}", facts={"reason": verdict.reason})
