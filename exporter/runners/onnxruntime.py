"""Run an ONNX model in ONNX Runtime with the provider that was asked for, or not at all."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from exporter.artifacts import EIGHT_BIT, OnnxModel, TensorSpec
from exporter.errors import InternalError, ModelNotSupported
from exporter.runners.base import Array, Feed, PreparedCall
from exporter.runners.execution_providers import CPU, check_provider, device_of, did_not_start, nodes_by_provider, require_nodes, with_options
from exporter.runners.feed_check import check_feed

__all__ = ["OnnxruntimeRunner"]


class OnnxruntimeRunner:
    """Runs an ``OnnxModel`` sequentially, with fixed threads.

    Args:
        provider: ``CPUExecutionProvider``, ``CUDAExecutionProvider``, ``TensorrtExecutionProvider`` or another one of the build. The CPU provider
            stands behind every other one for the operators it lacks, as the runtime demands, and CUDA behind TensorRT; ``settings`` say how many
            nodes each of them took. A provider that is asked for and not active is an error.
        threads: intra-operator threads; between operators there is one.
        optimize: at the full level (``ORT_ENABLE_ALL``), else operator after operator as the file has them (``ORT_DISABLE_ALL``). A model in fp8 is
            never optimized: ONNX Runtime (1.23 to 1.31) makes operators of it that it does not load, or that compute something else.
        tf32: the CUDA provider may use TF32 for float32 products; where it is, ``settings`` say so.
    """

    def __init__(
        self, model: OnnxModel, *, name: str = "onnx", provider: str = CPU, threads: int = 1, optimize: bool = True, tf32: bool = False
    ) -> None:
        self.name = name
        self.provider = provider
        self.precision = _precision(model)
        self.device = device_of(provider)
        self.threads: int | None = threads if self.device == "cpu" else None
        self.load_ms = 0.0
        self._level = "ORT_ENABLE_ALL" if optimize and self.precision != "fp8" else "ORT_DISABLE_ALL"
        self.settings = {"provider": provider, "optimization": self._level, "threads": f"{threads} intra, 1 inter"}
        self._tf32 = tf32 and self.device == "cuda"
        if self._tf32:
            self.settings["tf32"] = "on"
        self._model = model
        self._num_threads = threads
        self._session: Any = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs by name, in order."""
        return self._model.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs by name, in order."""
        return self._model.outputs

    def __enter__(self) -> Self:
        """Create the session.

        Raises:
            ConfigError: E551, there is no provider of this name.
            MissingLibrary: E841, this build of ONNX Runtime has no such provider.
            EnvironmentLacking: E842, the provider is in the build but did not start; E550, no node of the model runs on it.
            ModelNotSupported: E623, ONNX Runtime refuses the model.
        """
        import onnxruntime as ort

        facts = {"runner": self.name, "provider": self.provider, "onnxruntime": ort.__version__}
        check_provider(self.provider, facts)
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._num_threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, self._level)
        options.log_severity_level = 4
        options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads must not slow the other contestant of a race
        if self.provider != CPU:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        start = time.perf_counter()
        try:
            session = self._open(options, with_options(self.provider, tf32=self._tf32))
        except _ort_errors() as err:
            found = str(err).strip().split("\n")[0]
            if self.provider != CPU and self._opens_on_the_cpu(options):
                raise did_not_start(facts, found) from err
            raise ModelNotSupported(
                "E623", "ONNX Runtime does not load the model", facts={**facts, "file": str(self._model.path), "found": found}
            ) from err
        self.load_ms = (time.perf_counter() - start) * 1e3
        active = session.get_providers()
        if self.provider not in active:
            raise did_not_start(facts, f"active: {', '.join(active)}")
        if self.provider != CPU:
            nodes = nodes_by_provider(session)
            require_nodes(self.provider, nodes, facts)
            self.settings["nodes"] = " + ".join(f"{count} on {name}" for name, count in nodes.items()) or "not told by this ONNX Runtime"
        self._session = session
        return self

    def _open(self, options: Any, providers: list[Any]) -> Any:  # noqa: ANN401 - onnxruntime is untyped
        import onnxruntime as ort

        return ort.InferenceSession(str(self._model.path), sess_options=options, providers=providers, enable_fallback=0)

    def _opens_on_the_cpu(self, options: Any) -> bool:  # noqa: ANN401 - onnxruntime is untyped
        try:
            self._open(options, [CPU])
        except _ort_errors():
            return False
        return True

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        """Drop the session."""
        self._session = None

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once; return every output by name in the dtype of the model.

        Raises:
            SampleError: E611 to E614, ``feed`` does not fit.
            ModelNotSupported: E623, the runtime fails on these inputs.
        """
        check_feed(feed, self.inputs, runner=self.name)
        binding, _inputs = self._bind(feed)
        self._run(binding)
        return {spec.name: array for spec, array in zip(self.outputs, binding.copy_outputs_to_cpu(), strict=True)}

    def prepare(self, feed: Feed) -> PreparedCall:
        """Bind ``feed`` on the device; the buffers of the outputs are those that the first call makes.

        Raises:
            SampleError: E611 to E614, ``feed`` does not fit.
        """
        check_feed(feed, self.inputs, runner=self.name)
        binding, values = self._bind(feed)
        return _BoundCall(self._loaded(), binding, values, tuple(spec.name for spec in self.outputs))

    def _loaded(self) -> Any:  # noqa: ANN401 - onnxruntime is untyped
        if self._session is None:
            raise InternalError("E961", "a runner was used outside its with block", facts={"runner": self.name})
        return self._session

    def _bind(self, feed: Feed) -> tuple[Any, list[Any]]:
        """Return the binding and the input values, which look into the arrays and have to live as long as the binding."""
        import onnxruntime as ort

        binding = self._loaded().io_binding()
        values = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(feed[spec.name]), self.device, 0) for spec in self.inputs]
        for spec, value in zip(self.inputs, values, strict=True):
            binding.bind_ortvalue_input(spec.name, value)
        for spec in self.outputs:
            binding.bind_output(spec.name, self.device, 0)
        return binding, values

    def _run(self, binding: Any) -> None:  # noqa: ANN401
        try:
            self._loaded().run_with_iobinding(binding)
        except _ort_errors() as err:
            facts = {"runner": self.name, "file": self._model.path, "found": str(err).strip().split("\n")[0]}
            raise ModelNotSupported("E623", "ONNX Runtime does not run the model on these inputs", facts=facts) from err


class _BoundCall:
    """Calls on bound buffers; on CUDA the runtime synchronises before it returns, so the host clock sees the whole call."""

    clock = "perf_counter"

    def __init__(self, session: Any, binding: Any, values: list[Any], outputs: tuple[str, ...]) -> None:  # noqa: ANN401
        self._session, self._binding, self._values = session, binding, values
        self._unbound = outputs

    def run_block(self, iterations: int) -> NDArray[np.float64]:
        """Run ``iterations`` calls; return the time of each in milliseconds, shape ``(iterations,)``."""
        times_ns = np.empty(iterations, np.int64)
        run, binding, now = self._session.run_with_iobinding, self._binding, time.perf_counter_ns
        for index in range(iterations):
            start = now()
            run(binding)
            times_ns[index] = now() - start
            if self._unbound:
                for name, value in zip(self._unbound, binding.get_outputs(), strict=True):
                    binding.bind_ortvalue_output(name, value)
                self._unbound = ()
        return times_ns / 1e6


def _precision(model: OnnxModel) -> str:
    """Return what the file's metadata declares (``exporter.precision``), or its pairs in 8 bits, else the lowest floating dtype of its interface."""
    declared = model.metadata.get("exporter.precision", "")
    if declared in {"float64", "float32", "float16", "bfloat16"}:
        return declared
    if model.precision in EIGHT_BIT:
        return model.precision
    found = {spec.dtype for spec in (*model.inputs, *model.outputs)}
    return next((name for name in ("bfloat16", "float16", "float32", "float64") if name in found), "float32")


def _ort_errors() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "EPFail",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "ModelLoaded",
        "NoModel",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
    return (*(getattr(state, name) for name in names if hasattr(state, name)), RuntimeError)
