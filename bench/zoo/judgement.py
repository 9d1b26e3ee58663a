"""Counting BatchNorms in what a tool made, and when its answer is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from exporter.graph.aten.calls import BATCH_NORMS

__all__ = ["Count", "as_convolutions", "count_in_onnx", "count_in_torch", "is_wrong", "largest_error"]

WRONG_ERROR = 1e-3
WRONG_NOISE = 30.0
"""An answer is wrong where it is off by more than both: so much, and so many times what the unfolded network in float32 is off."""

_CONVOLUTIONS = {"Conv", "ConvTranspose", "FusedConv"}


@dataclass(frozen=True, slots=True)
class Count:
    """BatchNorms and convolutions that run."""

    batch_norms: int
    convolutions: int


def is_wrong(error: float, noise: float) -> bool:
    """Return whether an answer is wrong: `error` is that of the tool's network, `noise` that of the unfolded one, both in float32."""
    return not (error <= WRONG_ERROR or error <= WRONG_NOISE * noise)


def largest_error(outputs: Sequence[NDArray[Any]], reference: Sequence[NDArray[Any]]) -> float:
    """Return the largest `max|y - r| / max|r|` over the outputs; infinite where shapes differ or something finite became NaN."""
    if len(outputs) != len(reference):
        return float("inf")
    worst = 0.0
    for y, r in zip(outputs, reference, strict=True):
        if y.shape != r.shape or not np.array_equal(np.isfinite(y), np.isfinite(r)):
            return float("inf")
        if r.size == 0:
            continue
        finite = np.isfinite(r)
        difference = np.abs(np.asarray(y, np.float64) - np.asarray(r, np.float64))[finite]
        scale = float(np.abs(np.asarray(r, np.float64)[finite]).max(initial=0.0))
        worst = max(worst, float(difference.max(initial=0.0)) / (scale or 1.0))
    return worst


def count_in_onnx(model: onnx.ModelProto) -> Count:
    """Count in the graph, its subgraphs and its functions, whatever the domain: ONNX Runtime has convolutions of its own."""
    kinds = [node.op_type for graph in (model.graph, *model.functions) for node in _nodes(graph)]
    return Count(kinds.count("BatchNormalization"), sum(kind in _CONVOLUTIONS for kind in kinds))


def count_in_torch(module: nn.Module, x: torch.Tensor) -> tuple[Count, Any]:
    """Run a network; return what ran in it, and what came out."""
    with torch.no_grad(), _Counting() as mode:
        y = module(x)
    return Count(mode.batch_norms, mode.convolutions), y


def as_convolutions(before: Count, after: Count) -> int:
    """Return how many BatchNorms are gone by name only: a convolution was put in their place, so they are not removed."""
    gone = before.batch_norms - after.batch_norms
    return min(max(gone, 0), max(after.convolutions - before.convolutions, 0))


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.batch_norms = 0
        self.convolutions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = func._schema.name.partition("::")[2]  # noqa: SLF001 - torch has no public name for it
        self.batch_norms += kind in BATCH_NORMS
        self.convolutions += kind == "convolution"
        return func(*args, **(kwargs or {}))


def _nodes(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
