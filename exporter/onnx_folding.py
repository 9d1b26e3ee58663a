"""Fold an ONNX file from elsewhere, and measure the fold against the file in float64; no checkpoint and no torch model is needed.

reference  the file as it is, in float64
own error  the file as it is, in ONNX Runtime
candidate  the folded file, in ONNX Runtime
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifacts import FoldedOnnx, OnnxModel, TensorSpec, Verdict
from exporter.config import Config, InputConfig
from exporter.errors import ArtifactError, ConfigError, EnvironmentLacking, ModelNotSupported, SampleError
from exporter.onnx_export import OnnxFile
from exporter.runners.feed_check import numpy_dtype
from exporter.samples import Samples, read_samples
from exporter.verify import NamedFeed, OwnError, Reference

if TYPE_CHECKING:
    import onnx

__all__ = ["OnnxFold", "check_fold", "feeds_for", "fold_file", "measure_file"]


@dataclass(frozen=True, slots=True, eq=False)
class OnnxFold:
    """A folded file.

    Attributes:
        given: what was folded.
        written: what it became.
    """

    given: OnnxFile
    written: OnnxModel
    folded: FoldedOnnx


def fold_file(given: OnnxFile, output: Path, config: Config) -> OnnxFold:
    """Fold ``given`` and write the result to ``output``, whole or not at all.

    Raises:
        ArtifactError: ``output`` is the file itself (E472), or cannot be written (E711).
        FoldError, ExportError: of the fold, and of the check of what it made.
    """
    from exporter.graph import fold_onnx
    from exporter.onnx_export import write_folded

    path = given.model.path
    if output.exists() and output.samefile(path):
        help_text = f"-o {path.stem}.fused.onnx"
        raise ArtifactError("E472", "the fold would overwrite the ONNX file that it folds", facts={"file": path}, help=help_text)
    folded = fold_onnx(given.message, config.fold, base=path.parent)
    return OnnxFold(given, write_folded(folded, given.model, output, config.fold), folded)


def feeds_for(model: OnnxModel, given: tuple[InputConfig, ...], config: Config) -> tuple[NamedFeed, ...]:
    """Return what ``model`` is fed: the shapes that were given, else the samples of the configuration, else random numbers.

    Raises:
        ConfigError: a given input does not fit the file (E473), or a size is not known (E474).
        SampleError: the samples do not fit (E601 to E614), or are required (E615).
    """
    from exporter.verify import make_feeds

    samples = None
    inputs = model.inputs
    if given:
        inputs = tuple(_as_given(spec, given, model) for spec in inputs)
    elif config.samples.path is not None:
        samples = _samples(model, config)
    _require_feedable(inputs, model, has_samples=samples is not None)
    return make_feeds(samples, inputs, config.samples, config.parity)


def check_fold(fold: OnnxFold, feeds: tuple[NamedFeed, ...], config: Config, progress: Callable[[str, int, int], bool]) -> tuple[Verdict, ...]:
    """Compare the folded file with the file as it was: numbers by each provider, then structure.

    Raises:
        ModelNotSupported: an operator of the file runs neither in float64 nor in ONNX Runtime (E475).
    """
    from exporter.onnx_export import check_folded_structure, with_external_data
    from exporter.runners import OnnxruntimeRunner
    from exporter.verify import compare, not_run

    steps = 3
    threads = config.latency.threads
    progress("parity", 0, steps)
    message = with_external_data(fold.given.message, fold.given.model.path)
    reference, own = measure_file(fold.given.model, message, feeds, threads)
    verdicts = []
    progress("parity", 1, steps)
    for provider in config.onnxruntime.providers:
        short = provider.removesuffix("ExecutionProvider").lower()
        name = "onnx-fused" if short == "cpu" else f"onnx-fused-{short}"
        try:
            with OnnxruntimeRunner(fold.written, name=name, provider=provider, threads=threads) as runner:
                verdicts.append(compare(reference, own, runner, config.parity, samples_required=config.samples.required))
        except EnvironmentLacking as err:
            verdicts.append(not_run("parity", name, err, config.onnxruntime))
    progress("parity", steps, steps)
    return (*verdicts, check_folded_structure(fold.given, fold.written, fold.folded, config.fold))


def _samples(model: OnnxModel, config: Config) -> Samples:
    path = config.samples.path
    samples = read_samples(config.resolve(path) if path is not None else Path(), labels=config.samples.labels)
    names = [spec.name for spec in model.inputs]
    if set(samples.inputs) != set(names):
        facts = {"file": samples.path, "found": ", ".join(samples.inputs), "expected": ", ".join(names)}
        help_text = "name the arrays of the samples as the model's inputs, or give shapes for random ones: --input NAME:SHAPE"
        raise SampleError("E611", "the samples are not for the inputs of the ONNX file", facts=facts, help=help_text)
    return samples


def _as_given(spec: TensorSpec, given: tuple[InputConfig, ...], model: OnnxModel) -> TensorSpec:
    """Return ``spec`` with the sizes that were given for it.

    Raises:
        ConfigError: none was given, one does not fit, or one is for no input (E473).
    """
    names = [known.name for known in model.inputs]
    facts = {"file": model.path, "found": ", ".join(_text(entry.name, entry.shape, entry.dtype) for entry in given)}
    facts["expected"] = "; ".join(_text(known.name, known.shape, known.dtype) for known in model.inputs)
    entry = next((entry for entry in given if entry.name == spec.name), None)
    fits = (
        entry is not None
        and all(other.name in names for other in given)
        and len(entry.shape) == len(spec.shape)
        and all(size > 0 and size == (want if isinstance(want, int) else size) for size, want in zip(entry.shape, spec.shape, strict=True))
        and entry.dtype == spec.dtype
    )
    if entry is None or not fits:
        raise ConfigError("E473", "the inputs given are not those of the ONNX file", facts=facts)
    return dataclasses.replace(spec, shape=tuple(entry.shape))


def _require_feedable(inputs: tuple[TensorSpec, ...], model: OnnxModel, *, has_samples: bool) -> None:
    for spec in inputs:
        facts = {"file": model.path, "input": _text(spec.name, spec.shape, spec.dtype)}
        if not spec.shape or numpy_dtype(spec.dtype).kind not in "fiubV":
            raise ModelNotSupported("E475", "the check cannot make such an input: it feeds tensors of numbers, a row per sample", facts=facts)
        unknown = [size for size in spec.shape[1:] if isinstance(size, str)]
        if unknown and not has_samples:
            example = "x".join(str(size) if isinstance(size, int) else "224" if axis else "1" for axis, size in enumerate(spec.shape))
            facts["unknown"] = ", ".join(unknown)
            help_text = f"--input {spec.name}:{example}, or samples: [samples] path in exporter.toml"
            raise ConfigError("E474", "the size of an axis of the ONNX file's input is not known", facts=facts, help=help_text)


def _text(name: str, shape: tuple[int | str, ...], dtype: str) -> str:
    return f"{name} {dtype} [{', '.join(map(str, shape))}]"


def measure_file(model: OnnxModel, message: onnx.ModelProto, feeds: tuple[NamedFeed, ...], threads: int) -> tuple[Reference, OwnError]:
    """Return the reference and the error that rounding makes in the file as it is.

    Args:
        model: an ONNX file from elsewhere.
        message: of the file, with its external data.

    Where the file does not run in float64, or where that run cannot be right, ONNX Runtime without any optimisation is the reference,
    and how far its optimised run is from that the own error. The verdict says so.
    """
    from exporter.runners import OnnxFloat64Runner, OnnxruntimeRunner
    from exporter.verify import measure_own_error, measure_reference
    from exporter.verify.doubt_onnx import doubt_about

    with OnnxruntimeRunner(model, name="onnx-unfused", threads=threads) as unfused:
        try:
            with OnnxFloat64Runner("reference", message, model.inputs, model.outputs, threads=threads) as runner:
                reference = measure_reference(runner, feeds, runtime="ONNX")
                own = measure_own_error(reference, unfused)
                doubt = doubt_about(runner, reference, own, model, message)
                if not doubt:
                    return reference, own
        except ModelNotSupported as err:
            if err.code != "E621":
                raise
            doubt = f"the file does not run in float64 ({err.facts.get('found', err.problem)})"
        with OnnxruntimeRunner(model, name="reference", threads=threads, optimize=False) as plain:
            reference = measure_reference(plain, feeds, runtime="ONNX Runtime")
        remark = f"the reference is ONNX Runtime in {reference.precision} without optimisation: {doubt}"
        reference = dataclasses.replace(reference, remarks=(remark,))
        return reference, measure_own_error(reference, unfused)
