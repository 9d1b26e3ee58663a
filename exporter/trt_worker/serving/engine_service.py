"""What the worker answers: probe, build, refit, load, layers, infer, observe, prepare, time, release, unload."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from exporter.errors import EngineBuildError, NoGpu
from exporter.trt_worker.protocol import Buffer, pack_arrays, unpack_arrays
from exporter.trt_worker.serving.cuda import Driver, DriverProblem, open_driver
from exporter.trt_worker.serving.environment import examine
from exporter.trt_worker.serving.loop import Call, Handler
from exporter.trt_worker.serving.plugins import Plugins
from exporter.trt_worker.serving.tensorrt_module import import_tensorrt

if TYPE_CHECKING:
    from exporter.trt_worker.serving.binding import Binding
    from exporter.trt_worker.serving.session import Session

__all__ = ["EngineService", "make_handlers"]

_Answer = tuple[dict[str, Any], Sequence[Buffer]]


def make_handlers() -> dict[str, Handler]:
    """Return verb -> handler."""
    return EngineService().handlers()


class EngineService:
    """At most one loaded engine, with any number of prepared calls."""

    def __init__(self) -> None:
        self._driver: Driver | None = None
        self._session: Session | None = None
        self._prepared: dict[int, Binding] = {}
        self._number = 0
        self._plugins = Plugins()

    def handlers(self) -> dict[str, Handler]:
        """Return verb -> handler."""
        return {
            "build": self.build, "infer": self.infer, "layers": self.layers, "load": self.load, "observe": self.observe,
            "prepare": self.prepare, "probe": self.probe, "refit": self.refit, "release": self.release, "time": self.time, "unload": self.unload,
        }  # fmt: skip

    def probe(self, call: Call) -> _Answer:  # noqa: ARG002 - a handler's signature
        """Tell what is there and what is not."""
        return examine(), ()

    def tensorrt(self) -> Any:  # noqa: ANN401 - a module without types
        """Return TensorRT, after CUDA."""
        return import_tensorrt()

    def build(self, call: Call) -> _Answer:
        """Build a plan and send it, and after it the timing cache, where one was asked for."""
        from exporter.trt_worker.serving.building import BuildRequest, build

        driver = self._start_cuda()
        built = build(self._tensorrt_for(call), BuildRequest.from_json(call.arguments), call, driver.device())
        return built.facts, (built.plan, *built.timing_cache)

    def refit(self, call: Call) -> _Answer:
        """Give a plan new weights and send it."""
        from exporter.trt_worker.serving.refitting import refit

        driver = self._start_cuda()
        made = refit(self._tensorrt_for(call), call, driver.device())
        return made.facts, (made.plan,)

    def load(self, call: Call) -> _Answer:
        """Load a plan."""
        from exporter.trt_worker.serving.loading import Loading
        from exporter.trt_worker.serving.session import Session

        driver = self._start_cuda()
        self._forget()
        self._session = Session(self._tensorrt_for(call), driver, call.arguments["path"], call.arguments["sha256"], Loading.from_json(call.arguments))
        return {"tensors": self._session.tensors, "load_ms": self._session.load_ms}, ()

    def layers(self, call: Call) -> _Answer:  # noqa: ARG002 - a handler's signature
        """Tell the precision of each layer of the loaded engine."""
        return {"layers": self._loaded().layers()}, ()

    def infer(self, call: Call) -> _Answer:
        """Run once, or twice, and then tell besides which outputs are not the same both times."""
        from exporter.trt_worker.serving.repeating import FILLS, compare_runs

        session = self._loaded()
        binding = session.bind(unpack_arrays(call.arguments["arrays"], call.buffers))
        try:
            session.settle(binding, call.arguments.get("cuda_graph", "never"))
            outputs = {name: array.copy() for name, array in session.run(binding).items()}
            unlike = compare_runs(outputs, session.run(binding, FILLS[1])) if call.arguments.get("twice") else {}
        finally:
            session.release(binding)
        specs, buffers = pack_arrays(outputs)
        return {"arrays": specs, "unlike": unlike}, buffers

    def observe(self, call: Call) -> _Answer:
        """Run once; send what the engine wrote between its layers, and the ONNX nodes that each of these tensors comes from."""
        session = self._loaded()
        binding = session.bind(unpack_arrays(call.arguments["arrays"], call.buffers))
        try:
            seen = session.observe(binding)
        finally:
            session.release(binding)
        specs, buffers = pack_arrays({tensor.name: tensor.value for tensor in seen if tensor.value is not None})
        facts = [{"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape), "unread": tensor.unread} for tensor in seen]
        return {"arrays": specs, "tensors": facts, "nodes": session.nodes_by_tensor()}, buffers

    def prepare(self, call: Call) -> _Answer:
        """Place inputs in fixed buffers, and capture the call in a CUDA graph where that was asked for."""
        session = self._loaded()
        binding = session.bind(unpack_arrays(call.arguments["arrays"], call.buffers))
        try:
            launch = session.settle(binding, call.arguments.get("cuda_graph", "never"))
        except BaseException:
            session.release(binding)
            raise
        self._number += 1
        self._prepared[self._number] = binding
        return {"prepared": self._number, "launch": launch}, ()

    def time(self, call: Call) -> _Answer:
        """Run and time a block of calls."""
        binding = self._prepared[call.arguments["prepared"]]
        times, wall_ms = self._loaded().time_block(binding, int(call.arguments["iterations"]))
        specs, buffers = pack_arrays({"milliseconds": times})
        return {"arrays": specs, "wall_ms": wall_ms, "launch": binding.launch}, buffers

    def release(self, call: Call) -> _Answer:
        """Free a prepared call."""
        self._loaded().release(self._prepared.pop(call.arguments["prepared"]))
        return {}, ()

    def unload(self, call: Call) -> _Answer:  # noqa: ARG002 - a handler's signature
        """Free the engine."""
        self._forget()
        return {}, ()

    def _tensorrt_for(self, call: Call) -> Any:  # noqa: ANN401 - a module without types
        """Return TensorRT with the plugins that the request names."""
        trt = self.tensorrt()
        self._plugins.register(trt, call.arguments.get("plugins", ()))
        return trt

    def _start_cuda(self) -> Driver:
        if self._driver is None:
            try:
                self._driver = open_driver()
            except DriverProblem as err:
                raise NoGpu(
                    "E851",
                    "TensorRT needs a GPU, and none can be used",
                    facts={"found": err},
                    help="run on a machine with an NVIDIA GPU and its driver",
                ) from err
            self._driver.enter()
        return self._driver

    def _loaded(self) -> Session:
        if self._session is None:
            raise EngineBuildError("E522", "no engine is loaded in the TensorRT worker")
        return self._session

    def _forget(self) -> None:
        if self._session is not None:
            for binding in self._prepared.values():
                self._session.release(binding)
            self._prepared.clear()
            self._session.free()
            self._session = None
