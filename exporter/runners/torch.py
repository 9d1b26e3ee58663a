"""Run a torch module in a declared precision, on the CPU or on a CUDA device.

The module is copied before it is cast or moved, so the caller's module stays as it is. On CUDA, TF32 is off while the module
runs, unless it was asked for: float32 means float32. The number of threads is set while running and put back afterwards.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import time
import warnings
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch.utils import _pytree as pytree
from typing_extensions import Self

from exporter.artifacts import TensorSpec
from exporter.config import InputConfig
from exporter.errors import InternalError, ModelNotSupported, NoGpu
from exporter.runners.base import Array, Feed, PreparedCall
from exporter.runners.feed_check import check_feed
from exporter.runners.torch_timing import CpuCall, cuda_call

__all__ = ["TorchRunner", "array_from_tensor", "cast_module", "tensor_from_array"]

Precision: TypeAlias = Literal["float64", "float32", "float16", "bfloat16"]

_FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class TorchRunner:
    """Runs an ``nn.Module`` or what ``ExportedProgram.module()`` returns.

    Args:
        name: unique in a run, e.g. ``torch-unfused``.
        module: takes the inputs as positional arguments; where its parameters bear the names of the inputs, they are matched
            by name, else they are given in the order of ``inputs``.
        inputs: names, shapes and dtypes; a string in a shape is a dynamic axis.
        outputs: names in the order in which the module returns its tensors; a returned dict is matched by its keys where
            these are the names.
        precision: floating weights and inputs are cast to it. For float64, conversions to a lower precision that an
            exported graph contains are raised to float64 too; for the others they stay as the model has them.
        device: ``cpu`` or ``cuda``.
        threads: intra-operator threads on the CPU.
        cuda_graph: time replays of a captured CUDA graph rather than launches, where the module can be captured.
        tf32: on CUDA, float32 products and convolutions may use TF32; ``settings`` say whether.
    """

    def __init__(
        self,
        name: str,
        module: torch.nn.Module | torch.export.ExportedProgram,
        inputs: tuple[InputConfig | TensorSpec, ...],
        outputs: tuple[str | TensorSpec, ...],
        *,
        precision: Precision = "float32",
        device: Literal["cpu", "cuda"] = "cpu",
        threads: int = 1,
        cuda_graph: bool = False,
        tf32: bool = False,
    ) -> None:
        self.name = name
        self.precision: str = precision
        self.device: str = device
        self.threads: int | None = threads if device == "cpu" else None
        self.load_ms = 0.0
        on_device = {"tf32": "on" if tf32 else "off"} if device == "cuda" else {"threads": str(threads)}
        self.settings: dict[str, str] = {"mode": "inference", **on_device}
        self._inputs = tuple(_spec(item) for item in inputs)
        self._outputs = tuple(item if isinstance(item, TensorSpec) else TensorSpec(item, (), "") for item in outputs)
        self._source = module
        self._module: torch.nn.Module | None = None
        self._dtype: torch.dtype = getattr(torch, precision)
        self._order = tuple(range(len(inputs)))
        self._cuda_graph = cuda_graph and device == "cuda"
        self._tf32 = tf32

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs by name, in order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs by name, in order; shape and dtype are empty where they were not declared."""
        return self._outputs

    def __enter__(self) -> Self:
        """Copy the module, cast it and move it to the device.

        Raises:
            NoGpu: E843, ``cuda`` was asked for and torch sees no device.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            facts = {"runner": self.name, "torch": torch.__version__, "found": "torch.cuda.is_available() is False"}
            raise NoGpu("E843", "torch sees no CUDA device", facts=facts, help="exporter doctor says what is missing; the CPU needs no GPU")
        start = time.perf_counter()
        module = self._source.module(check_guards=False) if isinstance(self._source, torch.export.ExportedProgram) else self._source
        self._order = _argument_order(module, self._inputs)
        self._module = cast_module(module, self._dtype, torch.device(self.device))
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.load_ms = (time.perf_counter() - start) * 1e3
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        """Drop the copy."""
        self._module = None
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once; return every output by name in the dtype in which the module gives it.

        Raises:
            SampleError: E611 to E614, ``feed`` does not fit.
            ModelNotSupported: E621, the module cannot run in this precision; E622, it returns other outputs than declared.
        """
        check_feed(feed, self._inputs, runner=self.name)
        tensors = self._place(feed)
        with self._running():
            named = self._name_outputs(self._call(tensors))
            return {name: array_from_tensor(tensor) for name, tensor in named.items()}

    def prepare(self, feed: Feed) -> PreparedCall:
        """Place ``feed`` on the device; the call that comes back runs it again and again.

        Raises:
            SampleError: E611 to E614, ``feed`` does not fit.
        """
        check_feed(feed, self._inputs, runner=self.name)
        tensors = self._place(feed)
        module = self._loaded()
        if self.device == "cpu":
            return CpuCall(module, tensors, self._running)
        return cuda_call(module, tensors, self._running, cuda_graph=self._cuda_graph)

    def _loaded(self) -> torch.nn.Module:
        if self._module is None:
            raise InternalError("E961", "a runner was used outside its with block", facts={"runner": self.name})
        return self._module

    def _place(self, feed: Feed) -> tuple[torch.Tensor, ...]:
        placed = [tensor_from_array(feed[spec.name]).to(self.device) for spec in self._inputs]
        cast = [t.to(self._dtype) if t.dtype in _FLOATING else t for t in placed]
        return tuple(cast[index] for index in self._order)

    def _call(self, tensors: tuple[torch.Tensor, ...]) -> Any:  # noqa: ANN401 - whatever the user's module returns
        module = self._loaded()
        try:
            return module(*tensors)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as err:
            facts = {"runner": self.name, "precision": self.precision, "device": self.device, "found": str(err).strip().split("\n")[0]}
            raise ModelNotSupported("E621", f"the model does not run in {self.precision} on the {self.device}", facts=facts) from err

    def _name_outputs(self, returned: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
        names = [spec.name for spec in self._outputs]
        if isinstance(returned, Mapping) and set(returned) == set(names) and all(isinstance(t, torch.Tensor) for t in returned.values()):
            return {name: returned[name] for name in names}
        leaves = [leaf for leaf in pytree.tree_leaves(returned) if isinstance(leaf, torch.Tensor)]
        if len(leaves) != len(names):
            facts = {"runner": self.name, "found": f"{len(leaves)} tensors", "expected": f"{len(names)}: {', '.join(names)}"}
            raise ModelNotSupported(
                "E622", "the model returns other outputs than were declared", facts=facts, help="list every output under [model] outputs"
            )
        return dict(zip(names, leaves, strict=True))

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.threads is not None and torch.get_num_threads() != self.threads:
                stack.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(self.threads)
            if self.device == "cuda":
                stack.enter_context(_tf32_set(self._tf32))
            yield


def cast_module(module: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """Return ``module`` in eval mode with floating weights in ``dtype`` on ``device``: a copy, unless it is so already."""
    is_graph = isinstance(module, torch.fx.GraphModule)
    tensors = [*module.parameters(), *module.buffers()]
    if all(t.device.type == device.type and (t.dtype == dtype or t.dtype not in _FLOATING) for t in tensors):
        fits = is_graph or not any(part.training for part in module.modules())
        if fits and not (is_graph and dtype is torch.float64):
            return module
    with warnings.catch_warnings():  # torch's own copy of a graph's tree specification warns of itself
        warnings.filterwarnings("ignore", message=r".*LeafSpec.*", category=FutureWarning)
        copied = copy.deepcopy(module)
    if not is_graph:
        copied.eval()
    elif dtype is torch.float64:
        _raise_dtype_arguments_(copied)
    return copied.to(device=device).to(dtype=dtype)


def tensor_from_array(array: Array) -> torch.Tensor:
    """Return a tensor that shares no memory with ``array``; ml_dtypes arrays become torch's own bfloat16 and float8."""
    name = array.dtype.name
    if array.dtype.kind == "V" or name in {"bfloat16", "float8_e4m3fn", "float8_e5m2"}:
        bits = np.ascontiguousarray(array).view(np.uint16 if array.dtype.itemsize == 2 else np.uint8)
        return torch.from_numpy(bits.copy()).view(getattr(torch, name))
    return torch.from_numpy(np.array(array, order="C", copy=True))


def array_from_tensor(tensor: torch.Tensor) -> Array:
    """Return an array with the tensor's values and dtype on the CPU; bfloat16 and float8 come as ml_dtypes."""
    host = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    name = str(host.dtype).removeprefix("torch.")
    if name in {"bfloat16", "float8_e4m3fn", "float8_e5m2"}:
        import ml_dtypes

        bits: Array = host.view(torch.uint16 if host.element_size() == 2 else torch.uint8).numpy()
        exotic: Array = bits.view(getattr(ml_dtypes, name)).copy()
        return exotic
    array: Array = host.numpy().copy()
    return array


def _spec(item: InputConfig | TensorSpec) -> TensorSpec:
    if isinstance(item, TensorSpec):
        return item
    dynamic = {int(axis): name for axis, name in item.dynamic.items()} or {0: "batch"}
    return TensorSpec(item.name, tuple(dynamic.get(axis, size) for axis, size in enumerate(item.shape)), item.dtype)


def _argument_order(module: torch.nn.Module, inputs: tuple[TensorSpec, ...]) -> tuple[int, ...]:
    """Return, for each positional argument of ``module.forward``, which input it takes."""
    names = [spec.name for spec in inputs]
    try:
        parameters = list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        parameters = []
    first = parameters[: len(names)]
    return tuple(names.index(name) for name in first) if set(first) == set(names) else tuple(range(len(names)))


def _raise_dtype_arguments_(graph_module: torch.nn.Module) -> None:
    """Replace every floating dtype that a node of the graph asks for by float64, in place."""
    for part in graph_module.modules():
        if not isinstance(part, torch.fx.GraphModule):
            continue
        for node in part.graph.nodes:
            raised_args = torch.fx.node.map_aggregate(node.args, _raise_dtype)
            raised_kwargs = torch.fx.node.map_aggregate(node.kwargs, _raise_dtype)
            if node.op == "call_function" and (raised_args != node.args or raised_kwargs != node.kwargs):
                node.args, node.kwargs = raised_args, raised_kwargs
        part.recompile()


def _raise_dtype(argument: Any) -> Any:  # noqa: ANN401 - any argument of a node
    return torch.float64 if isinstance(argument, torch.dtype) and argument in _FLOATING else argument


@contextlib.contextmanager
def _tf32_set(allowed: bool) -> Iterator[None]:  # noqa: FBT001 - what is set
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
