"""One protocol for everything that runs a model: torch, ONNX Runtime, TensorRT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from exporter.artifacts import TensorSpec

__all__ = ["Array", "Feed", "PreparedCall", "Repetition", "Runner"]

Array: TypeAlias = NDArray[Any]
Feed: TypeAlias = Mapping[str, Array]


@dataclass(slots=True)
class Repetition:
    """What became of calls that a runner ran twice on the same input, its attribute ``repetition``.

    Attributes:
        num_calls: how many were run twice.
        differing: output -> how many elements did not have the same bits both times; outputs that are not here had.
        unwritten: output -> how many of them nobody wrote.
    """

    num_calls: int = 0
    differing: dict[str, int] = field(default_factory=dict)
    unwritten: dict[str, int] = field(default_factory=dict)

    def add(self, unlike: Mapping[str, Mapping[str, int]]) -> None:
        """Count one call more, with what was not the same in it."""
        self.num_calls += 1
        for output, counts in unlike.items():
            self.differing[output] = self.differing.get(output, 0) + counts["differing"]
            if counts["unwritten"]:
                self.unwritten[output] = self.unwritten.get(output, 0) + counts["unwritten"]


class PreparedCall(Protocol):
    """A call on fixed inputs and fixed buffers that can be timed.

    On a GPU it has an attribute ``launch`` besides, which says how calls are launched.
    """

    clock: str
    """``perf_counter`` or ``cuda events``."""

    def run_block(self, iterations: int) -> NDArray[np.float64]:
        """Run ``iterations`` calls and return the time of each in milliseconds; shape ``(iterations,)``."""
        ...


@runtime_checkable
class Runner(Protocol):
    """Something that runs one artefact; used in ``with``.

    Attributes:
        name: unique in a run: ``torch-unfused``, ``torch-fused``, ``onnx``, ``tensorrt``.
        precision: declared precision of the arithmetic: ``float64``, ``float32``, ``float16``, ``bfloat16``, ``int8``, ``fp8``.
        device: ``cpu`` or ``cuda``.
        threads: intra-operator threads on the CPU, None on a GPU.
        load_ms: time that ``__enter__`` took to load the artefact.
    """

    name: str
    precision: str
    device: str
    threads: int | None
    load_ms: float

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs by name, in order."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs by name, in order."""
        ...

    def __enter__(self) -> Self:
        """Load the artefact."""
        ...

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        """Free memory and processes."""
        ...

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once; return every output by name.

        Raises:
            SampleError: a name, shape or dtype of ``feed`` does not fit.
        """
        ...

    def prepare(self, feed: Feed) -> PreparedCall:
        """Place ``feed`` in fixed buffers on the device, for timing."""
        ...
