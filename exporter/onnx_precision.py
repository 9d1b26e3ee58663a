"""Give an ONNX file from elsewhere the precision that is asked for, and measure it against the file in float64; no checkpoint is needed.

reference  the file as it is, in float64
own error  the file as it is, with every value rounded that the new file stores in half precision; where that overflows in float16, in bfloat16
candidate  the new file
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifacts import OnnxModel, Verdict
from exporter.config import Config, InputConfig
from exporter.errors import ArtifactError, ConfigError, EnvironmentLacking, ExportError, ModelNotSupported
from exporter.files import write_bytes
from exporter.half_range import range_check, range_verdict
from exporter.onnx_export import OnnxFile
from exporter.onnx_folding import feeds_for, measure_file
from exporter.verify import NamedFeed, digest_of_feeds
from exporter.workspace import Workspace

if TYPE_CHECKING:
    from exporter.onnx_export import HalvedOnnx
    from exporter.runners import RoundedOnnxRunner

__all__ = ["as_asked", "check_conversion", "convert_file", "feeds_of"]

_CPU = "CPUExecutionProvider"
_RAISED_DEPARTURE = 1e-5
"""Largest relative L2 distance between a float32 file and itself in a newer opset."""


def convert_file(given: OnnxFile, output: Path, config: Config, feeds: tuple[NamedFeed, ...]) -> HalvedOnnx:
    """Write ``given`` to ``output`` in the precision of ``[onnx] precision``, whole or not at all.

    Args:
        given: a float32 file.
        output: another file.
        config: sections onnx and latency.
        feeds: what the ranges of float16 are measured on, and a newer opset is compared on.

    Raises:
        ArtifactError: ``output`` is the file itself (E468).
        ExporterError: as ``halve_onnx``.
    """
    from exporter.onnx_export import halve_onnx, halved_key

    path = given.model.path
    if output.exists() and output.samefile(path):
        help_text = f"-o {path.stem}.{config.onnx.precision}.onnx"
        raise ArtifactError("E468", "the conversion would overwrite the ONNX file that it converts", facts={"file": path}, help=help_text)
    key = halved_key(given, config.onnx, digest_of_feeds(feeds))
    measured = tuple(named for named in feeds if named.kind != "edge")
    raised = functools.partial(_check_raised, feeds, config)
    return halve_onnx(given, output, config.onnx, key=key, check_raised=raised, check_range=range_check(config, measured))


def _check_raised(feeds: tuple[NamedFeed, ...], config: Config, given: OnnxModel, raised: OnnxModel) -> dict[str, str]:
    from exporter.verify import measure_departure

    departure = max(measure_departure(given, raised, feeds, threads=config.latency.threads).values())
    if not departure <= _RAISED_DEPARTURE:
        facts = {"found": f"its outputs depart by {departure:.1e} in opset {raised.opset}"}
        raise ExportError("E467", "the ONNX file computes something else in a newer opset", facts=facts)
    return {f"departure_from_opset_{given.opset}": f"{departure:.1e}" if departure else "0"}


def check_conversion(
    given: OnnxFile, done: HalvedOnnx, feeds: tuple[NamedFeed, ...], config: Config, progress: Callable[[str, int, int], bool]
) -> tuple[Verdict, ...]:
    """Compare the new file with the given one: by each provider, with every value rounded on the CPU.

    Raises:
        ModelNotSupported: an operator of the file runs neither in float64 nor in ONNX Runtime (E475).
    """
    from exporter.onnx_export import with_external_data
    from exporter.runners import OnnxruntimeRunner, RoundedOnnxRunner
    from exporter.verify import compare, measure_own_error, not_run, without_overflow

    steps, threads = 3, config.latency.threads
    progress("parity", 0, steps)
    reference, _ = measure_file(given.model, with_external_data(given.message, given.model.path), feeds, threads)
    progress("parity", 1, steps)
    with _plain_runner(done, threads) as plain:
        own = measure_own_error(reference, plain)
    own = without_overflow(reference, own, lambda: _plain_runner(done, threads, "bfloat16"))
    progress("parity", 2, steps)
    verdicts = []
    for provider in config.onnxruntime.providers:
        name = f"onnx-{done.written.precision}"
        if provider == _CPU:
            runner: OnnxruntimeRunner = RoundedOnnxRunner(done.written, name=name, threads=threads)
        else:
            name += f"-{provider.removesuffix('ExecutionProvider').lower()}"
            runner = OnnxruntimeRunner(done.written, name=name, provider=provider, threads=threads)
        try:
            with runner:
                verdicts.append(compare(reference, own, runner, config.parity, samples_required=config.samples.required))
        except EnvironmentLacking as err:
            verdicts.append(not_run("parity", name, err, config.onnxruntime))
    progress("parity", steps, steps)
    if done.written.ranges is not None:
        verdicts.append(range_verdict(done.written.ranges, f"onnx-{done.written.precision}"))
    return tuple(verdicts)


def feeds_of(model: OnnxModel, given: tuple[InputConfig, ...], config: Config, *, check: bool) -> tuple[NamedFeed, ...]:
    """Return what the conversion of ``model`` is measured on; nothing where nothing has to be, or nothing can be made.

    Args:
        given: shapes from the command line.
        check: the result will be compared with ``model``.

    Raises:
        ExporterError: as ``feeds_for``.
    """
    from exporter.onnx_export.precision import FIRST_BFLOAT16

    raises = config.onnx.precision == "bfloat16" and model.opset < FIRST_BFLOAT16
    if not (check or raises or config.onnx.precision == "float16"):
        return ()
    try:
        return feeds_for(model, given, config)
    except ModelNotSupported as err:
        if check or raises or err.code != "E475":
            raise
        return ()


def as_asked(path: Path, workspace: Workspace, *, insists: bool) -> OnnxModel:
    """Return the ONNX model at ``path`` in ``[onnx] precision``: the file itself where it has that, else a new one among the artefacts.

    Args:
        path: of a file from anywhere.
        workspace: where artefacts go, and whose profiles say shapes that the samples do not.
        insists: the precision was asked for on the command line, so that float32 is one too, and not merely the default.

    Raises:
        ArtifactError: the file has another precision (E462), or is quantised (E463).
        ExporterError: as ``convert_file``.
    """
    from exporter.onnx_export import halved_key, load_onnx, read_onnx
    from exporter.onnx_export.precision import require_float32

    given, config = read_onnx(path), workspace.config
    precision = config.onnx.precision
    if given.model.precision == precision or (precision == "float32" and not insists):
        return given.model
    require_float32(given.model, given.message, precision)
    inputs = () if config.samples.path is not None else _inputs_of_profiles(given.model, workspace)
    feeds = feeds_of(given.model, inputs, config, check=False)
    output = workspace.folder / f"{path.stem}.{precision}.onnx"
    workspace.progress("onnx", 0, 1)
    model = load_onnx(output, key=halved_key(given, config.onnx, digest_of_feeds(feeds))) or convert_file(given, output, config, feeds).written
    workspace.progress("onnx", 1, 1)
    return model


def _inputs_of_profiles(model: OnnxModel, workspace: Workspace) -> tuple[InputConfig, ...]:
    """Return the shapes that the engine will be tuned for; nothing where no profile says them."""
    if not workspace.config.tensorrt.profiles:
        return ()
    try:
        shapes = workspace.profiles(model.inputs)[0].shapes
    except ConfigError:
        return ()  # said again, with its reason, where the engine is built
    known = {name: sizes[1] for name, sizes in shapes.items()}
    fixed = {spec.name: tuple(size for size in spec.shape if isinstance(size, int)) for spec in model.inputs}
    return tuple(InputConfig(name=spec.name, shape=known.get(spec.name, fixed[spec.name]), dtype=spec.dtype) for spec in model.inputs)


@contextlib.contextmanager
def _plain_runner(done: HalvedOnnx, threads: int, precision: str = "") -> Iterator[RoundedOnnxRunner]:
    """Open the given file, made plain, with the values rounded that the new file stores in half precision: to it, or to another one."""
    from exporter.runners import RoundedOnnxRunner

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.onnx"
        write_bytes(path, done.plain.SerializeToString())
        declared = {"exporter.precision": precision or done.written.precision}
        model = dataclasses.replace(done.written, path=path, metadata={**done.written.metadata, **declared})
        with RoundedOnnxRunner(model, name="onnx-unconverted", threads=threads, rounded=done.stored) as runner:
            yield runner
