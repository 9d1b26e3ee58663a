"""One project folder: its configuration, its artefacts, and which of them are up to date.

Each method makes one artefact of the chain, or takes the one that is there if it was made from the same inputs, settings and
versions, and notes in ``records`` what it did.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from exporter.artifacts import (
    Digest,
    Graph,
    OnnxModel,
    Plan,
    Profile,
    Provenance,
    Selection,
    StageRecord,
    TensorSpec,
    Weights,
)
from exporter.calibration import calibration_of, digest_of_calibration
from exporter.config import BakeConfig, Config
from exporter.errors import FoldError
from exporter.half_range import feeds_to_measure, range_check
from exporter.inputs import Inputs
from exporter.older_opset import check_with, lower_for_tensorrt_8, needs_lowering
from exporter.records import record_path
from exporter.selection import RAW, copy_named, require_labelled, select
from exporter.weights import bake, load_weights, weights_key

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Self

    from exporter.engine import EngineSupport

__all__ = ["Progress", "Workspace"]

Progress: TypeAlias = Callable[[str, int, int], bool]
"""Called with what is going on, steps done and steps in all; returning False asks the work to stop."""


def _silent(what: str, done: int, total: int) -> bool:  # noqa: ARG001 - the signature of Progress
    return True


class Workspace(Inputs):
    """The artefacts of one configuration.

    Args:
        config: the resolved configuration.
        folder: where artefacts go; ``config.work_dir`` where it is None.
        outputs: stage (``bake``, ``fold``, ``onnx``, ``engine``) -> path, where it is not to be the usual name in the folder.
        progress: told about everything that takes a while.
    """

    def __init__(
        self, config: Config, *, folder: Path | None = None, outputs: Mapping[str, Path] | None = None, progress: Progress = _silent
    ) -> None:
        super().__init__(config)
        self.folder = folder if folder is not None else config.work_dir
        self.outputs = dict(outputs or {})
        self.progress = progress
        self.records: list[StageRecord] = []
        self.onnx_opset17: OnnxModel | None = None
        """The model that the engine was built from, where its TensorRT does not read the opset of ``onnx``."""
        self._selection: Selection | None = None

    @functools.cached_property
    def weights(self) -> Weights:
        """Stage 2: the baked weights, in ``<stem>.baked.safetensors``."""
        with _Record(self, "bake") as record:
            path = self._path("bake", ".baked.safetensors")
            config = self.config.weights
            if config.select:
                self._selection = self._select()
                config = config.replace(select="", **copy_named(self._selection.chosen))
            make = self._bake_recalibrated if config.bn_stats == "recalibrate" else self._bake
            weights, state = make(config, path)
            record.finish(state, weights.summary.choice, weights.path, weights.digest)
        return weights

    @functools.cached_property
    def raw_weights(self) -> Weights | None:
        """The raw weights beside the chosen ones, for the metric table; None where the file has none."""
        if self.weights.summary.choice == "raw" or self.reading.raw_at is None:
            return None
        raw = self.config.weights.replace(choice="raw", ema="", bn_stats="auto", select="")
        return self._bake(raw, self.folder / f"{self.stem}.raw.safetensors")[0]

    def _select(self) -> Selection:
        """Measure every copy of the weights on the samples: the averages in the order of the file, then the raw weights."""
        from exporter.factories import example_inputs
        from exporter.factories.recalibration import output_names
        from exporter.runners.torch import TorchRunner
        from exporter.verify.metric import metric_of

        samples = require_labelled(self.config, self.samples)
        inputs, threads = example_inputs(self.model, samples), self.config.latency.threads
        names = [*(candidate.name for candidate in self.reading.candidates), *([RAW] if self.reading.raw_at is not None else [])]
        between = self.folder / f".{self.stem}.selecting.safetensors"

        def measure(name: str) -> tuple[str, float]:
            self._tell("select", names.index(name), len(names))
            settings = self.config.weights.replace(**copy_named(name), select="", drift="never", bn_stats="auto")
            module = self.module(self._bake(settings, between)[0])
            outputs = output_names(module, samples.inputs, self.config.model.outputs)
            with TorchRunner(name, module, inputs, outputs, threads=threads) as runner:
                return metric_of(runner, samples, self.config.metric, base=self.config.base)

        try:
            return select(names, measure, num_samples=len(samples))
        finally:
            for path in (between, record_path(between)):
                path.unlink(missing_ok=True)

    def _bake(self, config: BakeConfig, output: Path) -> tuple[Weights, Literal["made", "up to date"]]:
        selection = self._selection
        if selection is not None and (selection.chosen == RAW) != (config.choice == "raw"):
            selection = None  # the raw weights beside a chosen average
        order = self.parameter_order if config.choice == "ema" else None
        cached = load_weights(output, key=weights_key(self.checkpoint_digest, config, parameter_order=order, selection=selection))
        if cached is not None:
            return cached, "up to date"
        made = bake(
            self.checkpoint,
            config,
            output,
            checkpoint_digest=self.checkpoint_digest,
            progress=lambda done, total: self._tell("bake", done, total),
            parameter_order=order,
            selection=selection,
        )
        return made, "made"

    def _bake_recalibrated(self, config: BakeConfig, output: Path) -> tuple[Weights, Literal["made", "up to date"]]:
        """Bake with the statistics of the checkpoint, into a file that goes again, and estimate them anew."""
        from exporter.factories import example_inputs, model_identity
        from exporter.recalibration import recalibrated, recalibration_key, require_samples

        samples, digest = require_samples(self.config, self.samples)
        inputs = example_inputs(self.model, samples)
        identity = model_identity(self.model, base=self.config.base)
        order = self.parameter_order if config.choice == "ema" else None
        key = weights_key(self.checkpoint_digest, config, parameter_order=order, selection=self._selection)
        key = recalibration_key(key, self.config, digest, identity, inputs)
        cached = load_weights(output, key=key)
        if cached is not None:
            return cached, "up to date"
        plain = output.with_name(f".{output.name}.unrecalibrated")
        try:
            baked, _ = self._bake(config.replace(bn_stats="auto"), plain)
            made = recalibrated(
                baked,
                output,
                lambda: self.module(baked),
                self.config,
                samples,
                inputs,
                key=key,
                samples_digest=digest,
                identity=identity,
                progress=lambda done, total: self._tell("recalibrate", done, total),
            )
        finally:
            for path in (plain, record_path(plain)):
                path.unlink(missing_ok=True)
        return made, "made"

    def module(self, weights: Weights | None = None, *, normalising: bool = True) -> nn.Module:
        """Build the model anew and load ``weights``, by default the baked ones, strictly; it takes raw pixels where ``[fold] input`` is set."""
        from exporter.factories import build_model, load_weights_, normalise_inputs_

        module = build_model(self.model, base=self.config.base)
        load_weights_(module, (weights or self.weights).path)
        normalise_inputs_(module, self.config.fold.input if normalising else ())
        return module

    @functools.cached_property
    def graph(self) -> Graph:
        """Stage 3: the model traced with the baked weights and folded, in ``<stem>.fused.pt2``."""
        from exporter.factories import example_inputs, model_identity
        from exporter.graph import fold, graph_key, load_graph, save_graph, trace

        path = self._path("fold", ".fused.pt2")
        weights = self.weights
        with _Record(self, "fold") as record:
            model = self.model
            inputs = example_inputs(model, self.samples)
            identity = model_identity(self.model, base=self.config.base)
            key = graph_key(weights.digest, identity, inputs, self.model.outputs, self.config.fold)
            graph, state = load_graph(path, key=key), "up to date"
            if graph is None:
                state = "made"
                self._tell("fold", 0, 2)
                traced = trace(self.module(normalising=False), inputs, outputs=self.model.outputs)
                self._tell("fold", 1, 2)
                made_from = {"weights": str(weights.digest), "model": str(identity)}
                provenance = Provenance("graph", made_from, self.config.fold.to_json(), {}, weights.provenance.lineage)
                graph = save_graph(fold(traced, self.config.fold, provenance=provenance), path, key=key)
                self._tell("fold", 2, 2)
            summary = f"{len(graph.folded)} folded, {len(graph.refusals)} kept"
            record.finish(state, summary, path, graph.digest)
        return graph

    @functools.cached_property
    def onnx(self) -> OnnxModel:
        """Stage 4: the folded graph as ``<stem>.onnx``."""
        from exporter.onnx_export import export_onnx, load_onnx, onnx_key
        from exporter.verify import digest_of_feeds

        path = self._path("onnx", ".onnx")
        calibrate = calibration_of(self.config, self.samples)  # where it needs samples, it needs them before the work begins
        graph = self.graph
        if graph.digest is None:
            raise FoldError("E399", "the folded graph was not stored, so nothing can be made from it")
        with _Record(self, "onnx") as record:
            feeds = feeds_to_measure(self.config, self.samples, graph.inputs)
            calibration = digest_of_calibration(self.config, self.samples)
            key = onnx_key(graph.digest, self.config.onnx, calibration=calibration, feeds=digest_of_feeds(feeds) if feeds else "")
            model, state = load_onnx(path, key=key), "up to date"
            if model is None:
                self._tell("onnx", 0, 1)
                check = check_with(self.config, self.samples)
                in_range = range_check(self.config, feeds, graph.folded)
                config = self.config.onnx
                model = export_onnx(graph, path, config, key=key, check_lowered=check, check_range=in_range, calibrate=calibrate)
                state = "made"
                self._tell("onnx", 1, 1)
            dynamic = ", dynamic batch" if self.config.onnx.dynamic_batch else ""
            summary = f"opset {model.opset}, {_count(model.inputs, 'input')}, {_count(model.outputs, 'output')}{dynamic}"
            record.finish(state, summary, model.path, model.digest)
        return model

    @functools.cached_property
    def engine_support(self) -> EngineSupport:
        """What this machine can do for TensorRT, asked once."""
        from exporter.engine import probe

        return probe(self.config.tensorrt)

    def require_engine(self) -> EngineSupport:
        """Return what this machine can do for TensorRT.

        Raises:
            EnvironmentLacking: TensorRT or a GPU is missing.
        """
        from exporter.engine import require

        return require(self.config.tensorrt)

    @functools.cached_property
    def plan(self) -> Plan | None:
        """Stage 5: the plan; None, with a NOT_RUN record, where TensorRT or a GPU is missing and not required."""
        if not self.engine_support.available:
            self.records.append(StageRecord("engine", "NOT_RUN", 0.0, self.engine_support.missing))
            return None
        return self.build(self.onnx)

    def profiles(self, inputs: tuple[TensorSpec, ...]) -> tuple[Profile, ...]:
        """Return the profiles of an engine with these inputs: those of the configuration, else one made from the batches and the samples.

        Raises:
            ConfigError: a profile does not fit the inputs (E511 to E515), or nothing says how large an axis is (E516).
        """
        from exporter.engine import parse_profiles

        texts, sizes = self.config.tensorrt.profiles, {}
        if not texts and any(isinstance(size, str) for spec in inputs for size in spec.shape[1:]) and self.samples is not None:
            sizes = {name: array.shape[1:] for name, array in self.samples.inputs.items()}
        return parse_profiles(texts, inputs, batch=self.largest_batch, sizes=sizes)

    def build(self, model: OnnxModel) -> Plan:
        """Build the engine of ``model``, which may be one from elsewhere; for TensorRT 8 it is lowered to opset 17 first.

        Raises:
            EnvironmentLacking: TensorRT or a GPU is missing.
            ExportError: TensorRT 8 does not read the model, and it has no form that it reads (E451 to E453).
        """
        from exporter.engine import cache_folder, make_engine

        config = self.config.tensorrt
        support = self.require_engine()
        path = self.outputs.get("engine", self.folder / f"{model.path.stem}.plan")
        profiles = self.profiles(model.inputs)
        if needs_lowering(model, support.tensorrt_version):
            with _Record(self, "onnx") as record:
                model, is_cached = lower_for_tensorrt_8(model, self.folder, check_with(self.config, self.samples, profiles))
                record.finish("up to date" if is_cached else "made", "opset 17 for TensorRT 8", model.path, model.digest)
            self.onnx_opset17 = model
        with _Record(self, "engine") as record:
            plan, state = make_engine(model, path, config, profiles, support, cache=cache_folder(self.config), progress=self.progress)
            record.finish(state, f"TensorRT {plan.tensorrt_version}, {plan.precision}, {plan.gpu}", plan.path, plan.digest)
        return plan

    def _path(self, stage: str, suffix: str) -> Path:
        return self.outputs.get(stage, self.folder / f"{self.stem}{suffix}")

    def _tell(self, what: str, done: int, total: int) -> None:
        if not self.progress(what, done, total):
            raise KeyboardInterrupt

    def lineage(self) -> dict[str, str]:
        """Return the facts handed down from the checkpoint to the last artefact that was made."""
        lineage: dict[str, str] = {}
        for name in ("weights", "graph", "onnx", "onnx_opset17", "plan"):
            artefact = self.__dict__.get(name)
            if artefact is not None:
                lineage.update(artefact.provenance.lineage)
                if getattr(artefact, "digest", None) is not None:
                    lineage[f"{name}_contents_sha256" if artefact.digest.of == "contents" else f"{name}_sha256"] = artefact.digest.hex
        return lineage


class _Record:
    """Times a stage and appends what it did to the workspace's records."""

    def __init__(self, workspace: Workspace, stage: str) -> None:
        self.workspace, self.stage = workspace, stage

    def __enter__(self) -> Self:
        self.start = time.perf_counter()
        return self

    def finish(self, state: str, summary: str, path: Path, digest: Digest | None) -> None:
        seconds = time.perf_counter() - self.start
        kind: Literal["made", "up to date"] = "up to date" if state == "up to date" else "made"
        self.workspace.records.append(StageRecord(self.stage, kind, seconds, summary, str(path), str(digest or "")))

    def __exit__(self, *_: object) -> None:
        """Leave the record as it is; a stage that raised has none."""


def _count(specs: tuple[TensorSpec, ...], noun: str) -> str:
    return f"{len(specs)} {noun}{'' if len(specs) == 1 else 's'}"
