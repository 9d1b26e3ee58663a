"""The TensorRT runner: an engine in the worker, behind the protocol of every runner.

The plan's record is verified before the worker is started, and the worker compares the digest again over the very bytes that it gives
to TensorRT. Times are device times between two CUDA events around each call, with one synchronisation per block.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from exporter.artifacts import Plan, TensorSpec
from exporter.config import TensorrtConfig
from exporter.errors import ArtifactError, EngineBuildError, SampleError
from exporter.files import digest_of_file
from exporter.records import verify_record
from exporter.runners.base import Array, Feed, PreparedCall, Repetition
from exporter.runners.feed_check import check_feed
from exporter.trt_worker import Worker, loading_arguments, pack_arrays, unpack_arrays

__all__ = ["EngineTensor", "TensorrtRunner"]

_PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8", "fp8": "fp8"}
_CALL_LIMIT_S = 600.0
_ENGINE_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64", "BOOL": "bool", "UINT8": "uint8"}


@dataclass(frozen=True, slots=True, eq=False)
class EngineTensor:
    """A tensor that an engine wrote between its layers.

    Attributes:
        name: as the engine inspector has it.
        dtype: as TensorRT calls it.
        value: None where it was not read.
        unread: why, where it was not.
        nodes: names of the ONNX nodes that the layer which wrote it was made from, where the inspector tells them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    value: Array | None
    unread: str = ""
    nodes: tuple[str, ...] = ()


class TensorrtRunner:
    """Runs a plan; used in ``with``.

    Attributes:
        load_ms: reading, hashing and deserialising the plan and making the execution context, in the worker; without its start.
        cuda_graph: whether timed calls are captured in a CUDA graph where that works.
        repetition: every inference is run twice; whether it was the same both times.
    """

    def __init__(self, plan: Plan, config: TensorrtConfig, *, name: str = "tensorrt") -> None:
        self.name = name
        self.precision = _PRECISIONS[plan.precision]
        self.device = "cuda"
        self.threads: int | None = None
        self.load_ms = 0.0
        self.cuda_graph = config.cuda_graph != "never"
        self.repetition = Repetition()
        self._plan = plan
        self._config = config
        self._worker: Worker | None = None
        self._engine_dtypes: dict[str, str] = {}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs by name, as the ONNX model declares them."""
        return self._plan.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs by name, as the ONNX model declares them."""
        return self._plan.outputs

    def __enter__(self) -> Self:
        """Verify the plan, start the worker, load the engine.

        Raises:
            ArtifactError: the plan or its sidecar is missing, altered or not ours (E721 to E723), is not the plan that this runner was made for
                (E723), it has no weights (E547), a plugin library that it needs is not named (E556, E557), or TensorRT does not accept it (E521).
            EnvironmentLacking: E851 to E858.
        """
        if self._plan.stripped:
            facts = {"file": self._plan.path, "expected": "a plan with weights"}
            help_text = "put a checkpoint's in: exporter build-trt --refit PLAN CKPT -o NEW"
            raise ArtifactError("E547", "this plan was built without its weights", facts=facts, help=help_text)
        content = verify_record(self._plan.path)
        found = digest_of_file(self._plan.path)
        if found.hex != self._plan.digest.hex:
            raise ArtifactError(
                "E723", "an artefact differs from its record", facts={"file": self._plan.path, "found": found, "expected": self._plan.digest}
            )
        arguments = loading_arguments(self._plan.path, self._plan.digest.hex, content, self._config)
        worker = Worker(self._config.python)
        worker.__enter__()
        try:
            value = worker.request("load", arguments, limit_s=self._config.timeout_s).value
            self._engine_dtypes = {tensor["name"]: _ENGINE_DTYPES[tensor["dtype"]] for tensor in value["tensors"]}
            self._check_tensors()
        except BaseException:
            worker.close()
            raise
        self._worker = worker
        self.load_ms = float(value["load_ms"])
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        """End the worker, and with it everything on the device."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run twice; return every output of the first time by name, and keep in ``repetition`` what was not the same.

        Where the engine does not write, every byte is 0xFF: NaN in each floating dtype.

        Raises:
            SampleError: E611 to E614, ``feed`` does not fit the model; E525, it fits no profile, or has values beyond the engine's int32.
            EngineBuildError: the call failed (E522, E523, E549), or cannot be captured though it has to be (E548).
        """
        specs, buffers = pack_arrays(self._for_engine(feed))
        arguments = {"arrays": specs, "twice": True, "cuda_graph": "always" if self._config.cuda_graph == "always" else "never"}
        reply = self._started().request("infer", arguments, buffers, limit_s=_CALL_LIMIT_S)
        self.repetition.add(reply.value["unlike"])
        arrays = unpack_arrays(reply.value["arrays"], reply.buffers)
        return {spec.name: arrays[spec.name].astype(spec.dtype, copy=False) for spec in self.outputs}

    def observe(self, feed: Feed) -> tuple[EngineTensor, ...]:
        """Run once, an engine that was built with debug tensors; return what it wrote between its layers, in order.

        Raises:
            SampleError: as ``infer``.
            EngineBuildError: the call failed (E522, E523), or a tensor could not be read (E527).
        """
        specs, buffers = pack_arrays(self._for_engine(feed))
        reply = self._started().request("observe", {"arrays": specs}, buffers, limit_s=_CALL_LIMIT_S)
        arrays, nodes = unpack_arrays(reply.value["arrays"], reply.buffers), reply.value["nodes"]
        found, taken = [], set()
        for told in reply.value["tensors"]:
            name = str(told["name"])
            value = arrays.get(name) if name not in taken and not told["unread"] else None
            found.append(EngineTensor(name, told["dtype"], tuple(told["shape"]), value, told["unread"], tuple(nodes.get(name, ()))))
            taken.add(name)
        return tuple(found)

    def prepare(self, feed: Feed) -> PreparedCall:
        """Place ``feed`` in fixed buffers on the device, for timing.

        Raises:
            SampleError, EngineBuildError: as ``infer``.
        """
        specs, buffers = pack_arrays(self._for_engine(feed))
        worker = self._started()
        reply = worker.request("prepare", {"arrays": specs, "cuda_graph": self._config.cuda_graph}, buffers, limit_s=_CALL_LIMIT_S)
        return _Prepared(worker, int(reply.value["prepared"]), str(reply.value["launch"]))

    def _started(self) -> Worker:
        if self._worker is None:
            raise EngineBuildError(
                "E522", "no engine is loaded in the TensorRT worker", facts={"file": self._plan.path}, help="use the runner in a with statement"
            )
        return self._worker

    def _check_tensors(self) -> None:
        expected = {spec.name for spec in (*self.inputs, *self.outputs)}
        if expected != set(self._engine_dtypes):
            facts = {"file": self._plan.path, "found": ", ".join(sorted(self._engine_dtypes)), "expected": ", ".join(sorted(expected))}
            raise ArtifactError("E521", "the engine does not have the tensors that its sidecar names", facts=facts)

    def _for_engine(self, feed: Feed) -> dict[str, Array]:
        """Return ``feed`` in the engine's dtypes: TensorRT 8 has int32 where the model has int64."""
        check_feed(feed, self.inputs, runner=self.name)
        arrays: dict[str, Array] = {}
        for spec in self.inputs:
            array = np.asarray(feed[spec.name])
            if (spec.dtype, self._engine_dtypes.get(spec.name)) == ("int64", "int32"):
                limits = np.iinfo(np.int32)
                if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
                    facts = {"runner": self.name, "input": spec.name, "found": f"{array.min()} to {array.max()}", "expected": "int32"}
                    raise SampleError("E525", "an input has values beyond int32, which is what this engine takes", facts=facts)
                array = array.astype(np.int32)
            arrays[spec.name] = array
        return arrays


class _Prepared:
    """A call on fixed buffers in the worker."""

    clock = "cuda events"

    def __init__(self, worker: Worker, number: int, launch: str) -> None:
        self._worker = worker
        self._number = number
        self._launches = [launch]

    @property
    def launch(self) -> str:
        """Return how calls are launched: ``cuda graph``, or ``enqueue`` with the reason; several where it changed."""
        return ", then ".join(self._launches)

    def run_block(self, iterations: int) -> NDArray[np.float64]:
        """Run ``iterations`` calls and return the device time of each in milliseconds; shape ``(iterations,)``."""
        reply = self._worker.request("time", {"prepared": self._number, "iterations": iterations}, limit_s=_CALL_LIMIT_S)
        if reply.value["launch"] != self._launches[-1]:
            self._launches.append(str(reply.value["launch"]))
        return unpack_arrays(reply.value["arrays"], reply.buffers)["milliseconds"].astype(np.float64)
