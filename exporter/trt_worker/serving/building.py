"""Building a plan: one code path for TensorRT 8.5 to 11, written against what all of them have.

What depends on the version stands in ``features``. Nothing is tried and forgiven: every call that tells of failure by False, None or -1 is
checked.
"""

from __future__ import annotations

import ctypes
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from exporter.errors import EngineBuildError, ModelNotSupported
from exporter.trt_worker.serving.constraining import hold_in_float32
from exporter.trt_worker.serving.cuda import Device
from exporter.trt_worker.serving.debugging import mark_debug_tensors
from exporter.trt_worker.serving.features import has
from exporter.trt_worker.serving.inspecting import precision_shares
from exporter.trt_worker.serving.loading import Loading, deserialize
from exporter.trt_worker.serving.loop import Call
from exporter.trt_worker.serving.tactics import begin_tactics, check_tactics, read_tactics
from exporter.trt_worker.serving.tensorrt_module import Messages, construct, make_logger
from exporter.trt_worker.serving.timing import begin_timing, end_timing
from exporter.trt_worker.serving.wishes import allow_precision, set_wishes

__all__ = ["BuildRequest", "Built", "build", "check_precision", "describe_parser_errors", "describe_tensors"]

_OLDEST_OPSET_NEWS = "TensorRT 8 knows fewer operators and needs more constants than TensorRT 10: use that, or rewrite the part that is named"
_SHOWN_PARSER_ERRORS = 5
_LOWER = {"fp16", "bf16", "fp8", "fp4", "int8", "int4"}
"""Than float32."""
_HALVES, _EIGHT_BIT = {"fp16", "bf16"}, {"int8", "fp8"}
_TACTIC_LIBRARIES = {  # before TensorRT 10
    "CUBLAS": ("libcublas.so.12", "libcublas.so.11"),
    "CUBLAS_LT": ("libcublasLt.so.12", "libcublasLt.so.11"),
    "CUDNN": ("libcudnn.so.8",),
}


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build.

    Attributes:
        precision: of the ONNX model: ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``fp8``.
        profiles: per profile, input name -> (min, opt, max) shape.
        strict_nans: NaN and infinity are not optimised away.
        batch_invariant: a row's result does not depend on the batch that it is in.
        hardware_compatibility: GPUs beside this one that the plan runs on: ``none``, ``same_compute_capability``, ``ampere_plus``.
        refittable: the plan takes new weights later.
        stripped: the plan leaves without its weights, to take them later.
        version_compatible: later releases of TensorRT run the plan.
        weight_streaming: weights may stay in the host's memory.
        debug_tensors: the engine hands out what it writes between its layers.
        timing_cache: attach a timing cache, and hand it back.
        reproducible: record the tactics, or take those of ``tactics``.
        tactics: key -> tactic of the build to take after; empty at the first one.
        float32_nodes: of a model in float16, see ``hold_in_float32``.
        disable_tactic_libraries: switch tactics of cuBLAS and cuDNN off even where the libraries are there (before TensorRT 10).
    """

    onnx_path: str
    profiles: tuple[dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]], ...]
    tf32: bool
    workspace_bytes: int
    optimization_level: int
    timing_iterations: int
    strict_nans: bool = False
    batch_invariant: bool = False
    hardware_compatibility: str = "none"
    refittable: bool = False
    stripped: bool = False
    version_compatible: bool = False
    weight_streaming: bool = False
    debug_tensors: bool = False
    timing_cache: bool = False
    reproducible: bool = False
    tactics: dict[str, str] = field(default_factory=dict)
    precision: str = "fp32"
    float32_nodes: dict[str, Any] = field(default_factory=dict)
    disable_tactic_libraries: bool = False

    @staticmethod
    def from_json(arguments: Any) -> BuildRequest:  # noqa: ANN401 - a request's arguments
        """Return the request as it came through the pipe."""
        profiles = tuple({name: tuple(tuple(shape) for shape in shapes) for name, shapes in profile.items()} for profile in arguments["profiles"])
        named = {name: value for name, value in arguments.items() if name != "plugins"}  # registered before
        return BuildRequest(**{**named, "profiles": profiles})


@dataclass(frozen=True, slots=True)
class Built:
    """A plan, what is known of it, and the timing cache, where one was attached."""

    plan: memoryview
    facts: dict[str, Any]
    timing_cache: Sequence[memoryview] = ()


def build(trt: Any, request: BuildRequest, call: Call, device: Device) -> Built:  # noqa: ANN401 - TensorRT has no types
    """Build a plan.

    Raises:
        EngineBuildError: the parser (E501) or the builder (E502) refused, the build was cancelled (E503), the engine's layers do not
            have the precision that was asked for (E507), or it did not take the tactics of an earlier build (E560, E561).
        ModelNotSupported: an input is a shape tensor (E524).
        NoGpu: TensorRT finds no usable device (E858).
    """
    messages = Messages()
    with messages.in_errors():
        return _build(trt, request, call, device, messages)


def _build(trt: Any, request: BuildRequest, call: Call, device: Device, messages: Messages) -> Built:  # noqa: ANN401 - TensorRT has no types
    started = time.monotonic()
    logger = make_logger(trt, messages)
    builder = construct(trt.Builder, logger, messages=messages)
    network = _checked(builder.create_network(_network_flags(trt)), "create_network", messages)
    parser = construct(trt.OnnxParser, network, logger, messages=messages)
    if has(trt, "native instance norm") and (request.version_compatible or request.hardware_compatibility != "none"):
        parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)  # the plugin in its place is not compatible with anything
    call.progress("parse", 0, 1)
    if not parser.parse_from_file(request.onnx_path):
        raise _parser_error(trt, parser, request, messages)
    call.progress("parse", 1, 1)
    config = _checked(builder.create_builder_config(), "create_builder_config", messages)
    switched_off = _configure(trt, config, request, messages)
    if request.debug_tensors:
        mark_debug_tensors(trt, network, messages)
    float32_layers = hold_in_float32(trt, network, config, request.float32_nodes)
    timing = "none"
    if request.reproducible:
        timing = begin_tactics(trt, config, call.buffers[0], request.tactics, messages)
    elif request.timing_cache:
        timing = begin_timing(config, call.buffers[0], messages)
    _add_profiles(builder, network, config, request, messages)
    if has(trt, "progress monitor"):
        config.progress_monitor = _make_monitor(trt, call)
    call.progress("build", 0, 0)
    memory = builder.build_serialized_network(network, config)
    if call.cancelled.is_set():
        raise EngineBuildError("E503", "the build was cancelled; nothing was written", facts={"file": request.onnx_path})
    if memory is None:
        facts = {"file": request.onnx_path, "TensorRT version": trt.__version__, "timing cache": timing, **messages.facts()}
        raise EngineBuildError("E502", "TensorRT built no engine from this network; nothing was written", facts=facts)
    tactics = read_tactics(config) if request.reproducible else {}
    if timing == "replayed":
        check_tactics(request.tactics, tactics)
    plan = memoryview(memory).cast("B")
    seconds = time.monotonic() - started
    call.progress("inspect", 0, 1)
    information, tensors = _inspect(trt, logger, plan, request, messages)
    shares = precision_shares(information)
    check_precision(shares, request.precision)
    call.progress("inspect", 1, 1)
    facts = {
        "build_seconds": seconds,
        "device": device.to_json(),
        "disabled_tactic_sources": switched_off,
        "float32_layers": float32_layers,
        "precision_shares": shares,
        "sha256": hashlib.sha256(plan).hexdigest(),
        "strongly_typed": has(trt, "strongly typed"),
        "tensorrt_version": str(trt.__version__),
        "tactics": tactics,
        "tensors": tensors,
        "timing_cache": timing,
        "warnings": messages.take(),
    }
    return Built(plan, facts, end_timing(config) if timing != "none" else ())


def _network_flags(trt: Any) -> int:  # noqa: ANN401 - TensorRT has no types
    if has(trt, "strongly typed"):  # the value of the flag differs between 10 and 11
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)


def _configure(trt: Any, config: Any, request: BuildRequest, messages: Messages) -> list[str]:  # noqa: ANN401 - TensorRT has no types
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    if has(trt, "optimization level"):
        config.builder_optimization_level = request.optimization_level
    config.avg_timing_iterations = request.timing_iterations
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request.tf32:  # on by default in TensorRT; stated either way
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    set_wishes(trt, config, request)
    if has(trt, "precision flags"):
        allow_precision(trt, config, request.precision)
    if not has(trt, "tactic libraries"):
        return []
    sources = int(config.get_tactic_sources())
    switched_off = []
    for name, source in (("CUBLAS", trt.TacticSource.CUBLAS), ("CUBLAS_LT", trt.TacticSource.CUBLAS_LT), ("CUDNN", trt.TacticSource.CUDNN)):
        bit = 1 << int(source)
        if sources & bit and (request.disable_tactic_libraries or not any(_loads(library) for library in _TACTIC_LIBRARIES[name])):
            sources &= ~bit
            switched_off.append(name)
    if switched_off and not config.set_tactic_sources(sources):
        raise EngineBuildError(
            "E502", "TensorRT refused a build setting; nothing was built", facts={"setting": "set_tactic_sources", **messages.facts()}
        )
    return switched_off


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _add_profiles(builder: Any, network: Any, config: Any, request: BuildRequest, messages: Messages) -> None:  # noqa: ANN401 - TensorRT has no types
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    for tensor in inputs:
        if tensor.is_shape_tensor:
            raise ModelNotSupported(
                "E524", "an input of the network decides shapes, which this version does not support", facts={"input": tensor.name}
            )
    dynamic = {tensor.name for tensor in inputs if any(size < 0 for size in tensor.shape)}
    if not dynamic:
        return
    for number, shapes in enumerate(request.profiles):
        missing = sorted(dynamic - set(shapes))
        if missing:
            facts = {"profile": number, "missing": ", ".join(missing), "given": ", ".join(shapes)}
            raise EngineBuildError("E502", "an optimization profile does not name every dynamic input", facts=facts)
        profile = _checked(builder.create_optimization_profile(), "create_optimization_profile", messages)
        for name, (smallest, optimal, largest) in shapes.items():
            if name in dynamic:
                profile.set_shape(name, smallest, optimal, largest)
        if config.add_optimization_profile(profile) < 0:
            facts = {"profile": number, "shapes": "; ".join(f"{name}: {shape}" for name, shape in shapes.items()), **messages.facts()}
            raise EngineBuildError("E502", "TensorRT refused an optimization profile; nothing was built", facts=facts)


def _make_monitor(trt: Any, call: Call) -> Any:  # noqa: ANN401 - a class of TensorRT's own
    totals: dict[str, int] = {}

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Called by several threads; returning False from ``step_complete`` cancels the build."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002 - TensorRT's signature
            totals[phase_name] = num_steps
            call.progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            call.progress(phase_name, step, totals.get(phase_name, 0))
            return not call.cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            total = totals.get(phase_name, 0)
            call.progress(phase_name, total, total)

    return Monitor()


def _inspect(
    trt: Any,  # noqa: ANN401 - TensorRT has no types
    logger: Any,  # noqa: ANN401
    plan: memoryview,
    request: BuildRequest,
    messages: Messages,
) -> tuple[str, list[dict[str, Any]]]:
    runtime = construct(trt.Runtime, logger, messages=messages)
    engine = _checked(deserialize(trt, runtime, plan, Loading(host_code=request.version_compatible), messages), "deserialize_cuda_engine", messages)
    inspector = _checked(engine.create_engine_inspector(), "create_engine_inspector", messages)
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON)), describe_tensors(trt, engine)


def describe_tensors(trt: Any, engine: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - TensorRT has no types
    """Return name, direction, dtype and shape (-1: dynamic) of the engine's inputs and outputs, in order."""
    tensors = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        shape = [int(size) for size in engine.get_tensor_shape(name)]
        tensors.append({"name": name, "is_input": is_input, "dtype": engine.get_tensor_dtype(name).name, "shape": shape})
    return tensors


def check_precision(shares: dict[str, float], asked: str) -> None:
    """Refuse layers in a lower precision than was asked for, and an engine without a layer in that precision (E507)."""
    allowed = {asked} | (_HALVES if asked in _EIGHT_BIT else set())  # what is not in 8 bits may be in half precision, by a file from elsewhere
    lower = {name: share for name, share in shares.items() if name in _LOWER and name not in allowed}
    is_missing = bool(shares) and asked not in shares
    if lower or is_missing:
        found = ", ".join(f"{name} {share:.1%}" for name, share in (lower or shares).items())
        facts = {"found": f"layers in {found}", "expected": asked}
        raise EngineBuildError("E507", "the engine does not have the precision that was asked for; nothing was written", facts=facts)


def _checked(made: Any, what: str, messages: Messages) -> Any:  # noqa: ANN401 - objects of TensorRT's own
    if made is None:
        raise EngineBuildError("E502", "TensorRT made nothing where an object was asked for", facts={"call": what, **messages.facts()})
    return made


def _parser_error(trt: Any, parser: Any, request: BuildRequest, messages: Messages) -> EngineBuildError:  # noqa: ANN401 - TensorRT has no types
    facts = {"file": request.onnx_path, "TensorRT version": trt.__version__, "nodes": describe_parser_errors(trt, parser), **messages.facts()}
    help_text = _OLDEST_OPSET_NEWS if has(trt, "explicit batch") else ""
    return EngineBuildError("E501", "TensorRT cannot read this ONNX file; nothing was built", facts=facts, help=help_text)


def describe_parser_errors(trt: Any, parser: Any) -> str:  # noqa: ANN401 - TensorRT has no types
    """Return the errors of a parser, each with its node, one a line."""
    lines = []
    for index in range(min(parser.num_errors, _SHOWN_PARSER_ERRORS)):
        error = parser.get_error(index)
        place = f"node {error.node()}"
        if has(trt, "named parser errors"):
            place += f" {error.node_name()!r} ({error.node_operator()})"
        lines.append(f"{place}: {error.desc()}")
    if parser.num_errors > _SHOWN_PARSER_ERRORS:
        lines.append(f"and {parser.num_errors - _SHOWN_PARSER_ERRORS} more")
    return "\n".join(lines) or "none named"
