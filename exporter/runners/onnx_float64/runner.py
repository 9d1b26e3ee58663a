"""The float64 runner of ONNX models."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from typing_extensions import Self

from exporter.artifacts import TensorSpec
from exporter.errors import InternalError
from exporter.runners.base import Array, Feed, PreparedCall
from exporter.runners.feed_check import check_feed
from exporter.runners.onnx_float64.evaluating import Float64Evaluator

__all__ = ["OnnxFloat64Runner"]

_NARROW = frozenset({"float32", "float16", "bfloat16"})


class OnnxFloat64Runner:
    """Runs an ONNX model in float64 on the CPU: inputs are widened, outputs are float64 where the model has floating ones.

    Args:
        name: unique in a run.
        model: with its external data loaded.
        inputs, outputs: as ``exporter.onnx_export.describe`` gives them; feeds come in the model's own dtypes.
        threads: of torch and of the convolutions.
    """

    precision = "float64"
    device = "cpu"

    def __init__(
        self, name: str, model: onnx.ModelProto, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], *, threads: int = 1
    ) -> None:
        self.name = name
        self.threads: int | None = threads
        self.load_ms = 0.0
        self._model = model
        self._inputs = inputs
        self._outputs = outputs
        self._num_threads = threads
        self._evaluator: Float64Evaluator | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs by name, in order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs by name, in order, with the dtypes of the model."""
        return self._outputs

    def __enter__(self) -> Self:
        """Widen the model.

        Raises:
            ModelNotSupported: E621, an operator is not known in float64, or draws random numbers.
        """
        start = time.perf_counter()
        self._evaluator = Float64Evaluator(self._model)
        self.load_ms = (time.perf_counter() - start) * 1e3
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        """Drop the widened copy."""
        self._evaluator = None

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once; return every output by name.

        Raises:
            SampleError: E611 to E614, ``feed`` does not fit.
            ModelNotSupported: E621, an operator does not run on these inputs in float64.
        """
        return self.observe(feed, None)

    def observe(self, feed: Feed, seen: Callable[[onnx.NodeProto, tuple[Array, ...]], None] | None) -> dict[str, Array]:
        """Run once, and show ``seen`` each node with its outputs as they are made.

        Raises:
            SampleError, ModelNotSupported: as ``infer``.
        """
        if self._evaluator is None:
            raise InternalError("E961", "a runner was used outside its with block", facts={"runner": self.name})
        check_feed(feed, self._inputs, runner=self.name)
        widened = {spec.name: feed[spec.name].astype(np.float64) if spec.dtype in _NARROW else feed[spec.name] for spec in self._inputs}
        with self._with_threads(), torch.inference_mode():
            return self._evaluator.run(widened, seen)

    def prepare(self, feed: Feed) -> PreparedCall:
        """Return a call that runs ``feed`` again and again."""
        check_feed(feed, self._inputs, runner=self.name)
        return _Call(self, feed)

    @contextlib.contextmanager
    def _with_threads(self) -> Iterator[None]:
        before = torch.get_num_threads()
        if before == self._num_threads:
            yield
            return
        torch.set_num_threads(self._num_threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class _Call:
    clock = "perf_counter"

    def __init__(self, runner: OnnxFloat64Runner, feed: Feed) -> None:
        self._runner, self._feed = runner, feed

    def run_block(self, iterations: int) -> NDArray[np.float64]:
        """Run ``iterations`` calls; return the time of each in milliseconds, shape ``(iterations,)``."""
        times_ms = np.empty(iterations)
        for index in range(iterations):
            start = time.perf_counter()
            self._runner.infer(self._feed)
            times_ms[index] = (time.perf_counter() - start) * 1e3
        return times_ms
