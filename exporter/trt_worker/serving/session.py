"""A loaded engine: fixed buffers, one non-default stream, device times by event pairs, calls captured in CUDA graphs where that works.

Outputs whose shape depends on the data come through an allocator; tensors that TensorRT reads on the host lie there.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import ArtifactError, EngineBuildError, ModelNotSupported, SampleError
from exporter.trt_worker.serving.binding import Array, Binding, on_host
from exporter.trt_worker.serving.building import describe_tensors
from exporter.trt_worker.serving.cuda import Driver
from exporter.trt_worker.serving.cuda_graph import CudaGraph, capture
from exporter.trt_worker.serving.debugging import DebugTensors, Seen, make_listener
from exporter.trt_worker.serving.inspecting import layer_precisions, nodes_by_tensor
from exporter.trt_worker.serving.loading import Loading, deserialize
from exporter.trt_worker.serving.output_allocator import OutputMemory, make_allocator
from exporter.trt_worker.serving.repeating import FILLS, same_bytes
from exporter.trt_worker.serving.tensorrt_module import Messages, construct, make_logger
from exporter.trt_worker.serving.wishes import require

__all__ = ["Session", "read_plan"]

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64", "BOOL": "bool", "UINT8": "uint8"}


def read_plan(path: str, sha256: str) -> bytes:
    """Return the bytes of a plan; the digest is taken over the very bytes that go to TensorRT.

    Raises:
        ArtifactError: they have another digest (E723).
    """
    plan = Path(path).read_bytes()
    found = hashlib.sha256(plan).hexdigest()
    if not hmac.compare_digest(found, sha256):
        raise ArtifactError("E723", "an artefact differs from its record", facts={"file": path, "found": found, "expected": sha256})
    return plan


class Session:
    """A deserialised engine with one execution context.

    Args:
        sha256: digest that the plan must have; it is taken over the bytes that go to TensorRT.
        loading: what the plan may do, and how much device memory its weights get.

    Raises:
        ArtifactError: the plan has other bytes (E723), or this TensorRT or GPU does not accept it (E521).
        EngineBuildError: E522, E546, E559.
        ModelNotSupported: E524.
    """

    def __init__(self, trt: Any, driver: Driver, plan_path: str, sha256: str, loading: Loading) -> None:  # noqa: ANN401 - TensorRT has no types
        started = time.monotonic()
        self._trt = trt
        self._driver = driver
        self._messages = Messages()
        self._logger = make_logger(trt, self._messages)
        plan = read_plan(plan_path, sha256)
        self._runtime = construct(trt.Runtime, self._logger, messages=self._messages)
        self._engine = deserialize(trt, self._runtime, plan, loading, self._messages)
        if self._engine is None:
            facts = {"file": plan_path, "TensorRT version": trt.__version__, "GPU": driver.device().name, **self._messages.facts()}
            help_text = "a plan belongs to the TensorRT version and the GPU it was built with: build it again with exporter build-trt"
            raise ArtifactError("E521", "TensorRT does not accept this plan", facts=facts, help=help_text)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineBuildError("E522", "TensorRT made no execution context", facts={"file": plan_path, **self._messages.facts()})
        self._context.nvtx_verbosity = trt.ProfilingVerbosity.NONE  # detailed markers cost time in every call
        self.tensors = describe_tensors(trt, self._engine)
        self._check_tensors()
        self._stream = driver.new_stream()
        self._current: Binding | None = None
        self._listener: Any = None
        self._profile = 0
        self.load_ms = (time.monotonic() - started) * 1e3

    def _check_tensors(self) -> None:
        for tensor in self.tensors:
            name = tensor["name"]
            if tensor["dtype"] not in _DTYPES:
                raise ModelNotSupported(
                    "E524", "a tensor of the engine has a dtype that this version does not support", facts={"tensor": name, "found": tensor["dtype"]}
                )
            if tensor["is_input"] and self._engine.is_shape_inference_io(name) and not self._is_on_host(name):
                problem = "an input of the engine decides shapes and lies on the device, which this version does not support"
                raise ModelNotSupported("E524", problem, facts={"input": name})

    def _is_on_host(self, name: str) -> bool:
        return bool(self._engine.get_tensor_location(name) == self._trt.TensorLocation.HOST)

    def layers(self) -> dict[str, str]:
        """Return layer -> precision, as the engine inspector tells it."""
        return layer_precisions(self._information())

    def nodes_by_tensor(self) -> dict[str, list[str]]:
        """Return tensor -> ONNX nodes of the layer that writes it, as the engine inspector tells it."""
        return nodes_by_tensor(self._information())

    def _information(self) -> str:
        inspector = self._engine.create_engine_inspector()
        if inspector is None:
            raise self._failed("create_engine_inspector")
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def free(self) -> None:
        """Give everything back: context before engine before runtime, then the stream."""
        self._current = None
        self._context = None
        self._listener = None
        self._engine = None
        self._runtime = None
        self._driver.call("cuStreamDestroy_v2", self._stream)

    # -- one call -----------------------------------------------------------------------------------------------------

    def bind(self, feed: Mapping[str, Array]) -> Binding:
        """Return buffers for ``feed``, with its values on the device.

        Raises:
            SampleError: a name, dtype or shape does not fit the engine (E525).
        """
        inputs = {tensor["name"]: tensor for tensor in self.tensors if tensor["is_input"]}
        if set(feed) != set(inputs):
            raise SampleError(
                "E525", "the inputs do not fit the engine", facts={"found": ", ".join(sorted(feed)), "expected": ", ".join(sorted(inputs))}
            )
        for name, array in feed.items():
            if array.dtype.name != _DTYPES[inputs[name]["dtype"]]:
                raise SampleError(
                    "E525",
                    "an input does not fit the engine",
                    facts={"input": name, "found": array.dtype.name, "expected": _DTYPES[inputs[name]["dtype"]]},
                )
        shapes = {name: array.shape for name, array in feed.items()}
        binding = Binding(self._driver, self._profile_for(shapes), shapes)
        try:
            for name, array in feed.items():
                if self._is_on_host(name):
                    binding.on_host[name] = on_host(array.shape, array.dtype.name)
                    binding.on_host[name][...] = array
            self._set_shapes(binding)
            for name, array in feed.items():
                if name in binding.on_host:
                    continue
                whole = np.ascontiguousarray(array)
                binding.addresses[name] = self._driver.allocate(whole.nbytes)
                self._driver.call("cuMemcpyHtoDAsync_v2", binding.addresses[name], whole.ctypes.data, whole.nbytes, self._stream)
                self._synchronise()  # `whole` may be a copy that ends with this round
            for tensor in self.tensors:
                if not tensor["is_input"]:
                    self._place_output(binding, tensor)
            self.activate(binding)
        except BaseException:
            binding.free()
            raise
        return binding

    def _profile_for(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        allowed = []
        for profile in range(max(1, self._engine.num_optimization_profiles)):
            fits = True
            for name, shape in shapes.items():
                smallest, _, largest = (tuple(int(size) for size in dims) for dims in self._engine.get_tensor_profile_shape(name, profile))
                fits &= len(shape) == len(smallest) and all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True))
                allowed.append(f"profile {profile}: {name} from {_text(smallest)} to {_text(largest)}")
            if fits:
                return profile
        found = ", ".join(f"{name}: {_text(shape)}" for name, shape in shapes.items())
        raise SampleError(
            "E525",
            "the inputs fit no optimization profile of the engine",
            facts={"found": found, "expected": "\n".join(allowed)},
            help="build with a wider profile: exporter build-trt --profile",
        )

    def _set_shapes(self, binding: Binding) -> None:
        if binding.profile != self._profile:
            try:
                worked = self._context.set_optimization_profile_async(binding.profile, self._stream)
            except RuntimeError as err:  # instead of False, in the bindings
                raise self._failed("set_optimization_profile_async", found=str(err)) from err
            self._must(worked, "set_optimization_profile_async")
            self._synchronise()
            self._profile = binding.profile
        for name, shape in binding.shapes.items():
            self._must(self._context.set_input_shape(name, tuple(shape)), f"set_input_shape({name!r}, {_text(shape)})")
            if name in binding.on_host:
                self._set_address(name, binding.on_host[name].ctypes.data)
        try:
            unknown = self._context.infer_shapes()
        except RuntimeError as err:  # that is how the bindings tell it
            raise self._failed("infer_shapes", found=str(err)) from err
        if unknown:
            raise EngineBuildError(
                "E522", "TensorRT cannot tell the shapes of a call", facts={"tensors": ", ".join(unknown), **self._messages.facts()}
            )

    def _place_output(self, binding: Binding, tensor: Mapping[str, Any]) -> None:
        name = tensor["name"]
        shape = tuple(int(size) for size in self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            memory = OutputMemory(self._driver, self._stream)
            binding.grown[name] = memory, make_allocator(self._trt, memory)
        elif self._is_on_host(name):
            binding.on_host[name] = binding.outputs[name] = on_host(shape, _DTYPES[tensor["dtype"]])
        else:
            host = np.empty(shape, _DTYPES[tensor["dtype"]])
            binding.outputs[name] = host
            binding.addresses[name] = self._driver.allocate(host.nbytes)

    def activate(self, binding: Binding) -> None:
        """Make ``binding`` the one that the next calls use; a graph of the one before is of no use any more."""
        if self._current is binding:
            return
        self._leave()
        self._set_shapes(binding)
        for name, address in binding.addresses.items():
            self._set_address(name, address)
        for name, array in binding.on_host.items():
            self._set_address(name, array.ctypes.data)
        self._current = binding
        for name, (_, allocator) in binding.grown.items():
            self._must(self._context.set_output_allocator(name, allocator), f"set_output_allocator({name!r})")

    def _leave(self) -> None:
        binding, self._current = self._current, None
        if binding is None:
            return
        binding.drop_graph()
        for name in binding.grown:  # the context must not call an allocator that may be gone
            self._must(self._context.set_output_allocator(name, None), f"set_output_allocator({name!r}, None)")

    def release(self, binding: Binding) -> None:
        """Free ``binding``."""
        try:
            if self._current is binding:
                self._leave()
        finally:
            binding.free()

    def run(self, binding: Binding, fill: int = FILLS[0]) -> dict[str, Array]:
        """Run once and return every output; where the engine did not write, every byte is ``fill``.

        Raises:
            EngineBuildError: the call failed (E522, E523), or TensorRT did not tell the shape of an output (E549).
        """
        self.activate(binding)
        for name, host in binding.outputs.items():
            if name in binding.on_host:
                host.reshape(-1).view(np.uint8)[...] = fill
            else:
                self._driver.call("cuMemsetD8Async", binding.addresses[name], fill, max(1, host.nbytes), self._stream)
        self._launch(binding, fill)
        for name, host in binding.outputs.items():
            if host.nbytes and name not in binding.on_host:
                self._driver.call("cuMemcpyDtoHAsync_v2", host.ctypes.data, binding.addresses[name], host.nbytes, self._stream)
        self._synchronise()
        return {**binding.outputs, **{name: self._fetch(name, memory) for name, (memory, _) in binding.grown.items()}}

    def observe(self, binding: Binding) -> list[Seen]:
        """Run once and return what the engine wrote between its layers, in order.

        Raises:
            EngineBuildError: this release has no debug tensors (E546), a call failed (E522, E523), or a tensor could not be read (E527).
        """
        require(self._trt, "debug tensors", "debug_tensors")
        tensors = DebugTensors(self._driver)
        if self._listener is None:
            listener = make_listener(self._trt, tensors)
            self._must(self._context.set_debug_listener(listener), "set_debug_listener")
            self._listener = listener
        self._listener.tensors = tensors
        self._set_debugging(wanted=True)
        try:
            self.run(binding)
        finally:
            self._set_debugging(wanted=False)
            self._listener.tensors = None
        tensors.check()
        return tensors.seen

    def _set_debugging(self, *, wanted: bool) -> None:
        self._context.unfused_tensors_debug_state = wanted  # the bindings drop what the library returns: it is read back
        self._must(self._context.unfused_tensors_debug_state == wanted, f"unfused_tensors_debug_state = {wanted}")

    def _fetch(self, name: str, memory: OutputMemory) -> Array:
        dtype = next(_DTYPES[tensor["dtype"]] for tensor in self.tensors if tensor["name"] == name)
        size = -1 if memory.shape is None else int(np.prod(memory.shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if memory.shape is None or not 0 <= size <= memory.capacity_bytes:
            found = "no shape" if memory.shape is None else f"{_text(memory.shape)} {dtype} in {memory.capacity_bytes} bytes"
            facts = {"output": name, "found": found, **self._messages.facts()}
            raise EngineBuildError("E549", "TensorRT did not say how large an output is", facts=facts)
        host = np.empty(memory.shape, dtype)
        if size:
            self._driver.call("cuMemcpyDtoHAsync_v2", host.ctypes.data, memory.address, size, self._stream)
            self._synchronise()
        return host

    # -- graphs -------------------------------------------------------------------------------------------------------

    def settle(self, binding: Binding, wish: str) -> str:
        """Decide how the calls of ``binding`` are launched, and return it (see ``Binding.launch``).

        Args:
            wish: ``never``; ``auto``, a CUDA graph where one can be captured; ``always``.

        Raises:
            EngineBuildError: ``always``, and no graph can be captured (E548).
        """
        self.activate(binding)
        binding.graph_wish = wish
        if binding.launch:
            return binding.launch
        binding.launch = "enqueue"
        if wish == "never":
            return binding.launch
        problem = self._capture(binding)
        if problem and wish == "always":
            facts = {"found": problem, **self._messages.facts()}
            help_text = 'let it time plain calls where it has to: [tensorrt] cuda_graph = "auto"'
            raise EngineBuildError("E548", "the engine's calls cannot be captured in a CUDA graph", facts=facts, help=help_text)
        binding.launch = f"enqueue ({problem})" if problem else "cuda graph"
        return binding.launch

    def _capture(self, binding: Binding) -> str:
        """Give ``binding`` a graph that computes what a plain call does; return why it has none."""
        if binding.grown:
            return f"the shape of {', '.join(binding.grown)} depends on the data"
        plain = {name: array.copy() for name, array in self.run(binding).items()}  # the first call after new shapes cannot be captured
        made = capture(self._driver, self._stream, self._try_enqueue)
        if not isinstance(made, CudaGraph):
            return made
        binding.graph = made
        try:
            problem = "" if same_bytes(plain, self.run(binding)) else "its replay gives other outputs than a plain call"
        except EngineBuildError as err:
            problem = f"{err.facts.get('call', err.problem)}: {err.facts.get('found', 'it failed')}"
        if problem:
            binding.drop_graph()
        return problem

    # -- timing -------------------------------------------------------------------------------------------------------

    def time_block(self, binding: Binding, iterations: int) -> tuple[NDArray[np.float64], float]:
        """Run ``iterations`` calls with one synchronisation at the end.

        Returns:
            Device time of each call in milliseconds, shape (iterations,), between two events around it; and the wall time of the
            whole block on the host in milliseconds.
        """
        self.settle(binding, binding.graph_wish)
        while len(binding.events) < 2 * iterations:
            binding.events.append(self._driver.new_event())
        events = binding.events
        self._synchronise()
        started = time.perf_counter()
        for number in range(iterations):
            self._driver.call("cuEventRecord", events[2 * number], self._stream)
            self._launch(binding, None)
            self._driver.call("cuEventRecord", events[2 * number + 1], self._stream)
        self._synchronise()
        wall_ms = (time.perf_counter() - started) * 1e3
        times = [self._driver.elapsed_ms(events[2 * number], events[2 * number + 1]) for number in range(iterations)]
        return np.array(times, np.float64), wall_ms

    def _launch(self, binding: Binding, fill: int | None) -> None:
        if binding.graph is not None:
            binding.graph.launch(self._stream)
            return
        for memory, _ in binding.grown.values():
            memory.begin(fill)
        problem = self._try_enqueue()
        lacking = next((memory.problem for memory, _ in binding.grown.values() if memory.problem is not None), None)
        if lacking is not None:
            raise lacking
        if problem:
            raise self._failed("execute_async_v3")

    def _try_enqueue(self) -> str:
        if self._context.execute_async_v3(self._stream):
            return ""
        said = self._messages.facts(1).get("TensorRT", "")
        return f"execute_async_v3 returned False{': ' + said if said else ''}"

    def _set_address(self, name: str, address: int) -> None:
        self._must(self._context.set_tensor_address(name, address), f"set_tensor_address({name!r})")

    def _synchronise(self) -> None:
        self._driver.call("cuStreamSynchronize", self._stream)

    def _must(self, worked: bool, what: str) -> None:  # noqa: FBT001 - what TensorRT returned
        if not worked:
            raise self._failed(what)

    def _failed(self, what: str, **facts: str) -> EngineBuildError:
        return EngineBuildError("E522", "a call of TensorRT did not work", facts={"call": what, **facts, **self._messages.facts()})


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape) or "scalar"
