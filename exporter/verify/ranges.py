"""How large the values of a float32 ONNX model become, tensor by tensor, on the feeds: what float16 would make of them."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.artifacts import OnnxModel, TensorSpec
from exporter.files import write_bytes
from exporter.runners.base import Array
from exporter.runners.onnxruntime import OnnxruntimeRunner
from exporter.verify.feeds import NamedFeed

__all__ = ["FLOAT16_LARGEST", "FLOAT16_SMALLEST_NORMAL", "TensorRange", "measure_ranges"]

FLOAT16_LARGEST = 65504.0
FLOAT16_SMALLEST_NORMAL = 2.0**-14
_SUMS = {
    "AveragePool": 1, "GlobalAveragePool": 1, "GlobalLpPool": 2, "LpPool": 2, "ReduceL1": 1, "ReduceL2": 2, "ReduceLogSum": 1, "ReduceMean": 1,
    "ReduceSum": 1, "ReduceSumSquare": 2,
}  # fmt: skip
"""Operator -> the power of the values that it sums. Products are summed in float32 by tensor cores, whatever they are stored in."""
_ROWS = 4
"""Rows run at once: every tensor of the model is kept meanwhile."""


@dataclass(frozen=True, slots=True)
class TensorRange:
    """One tensor.

    Attributes:
        places: modules of the node that makes it and of those that read it, the node's name where it has none.
        largest: largest finite magnitude.
        small_share: share of the values that are not zero and below float16's normal numbers.
        is_finite: the float32 model itself made neither infinity nor NaN.
        summed: what a sum inside of the node may come to, at most, on its way to the value; 0 where it sums nothing, or products alone.
    """

    tensor: str
    op: str
    places: tuple[str, ...]
    largest: float
    small_share: float
    is_finite: bool = True
    summed: float = 0.0


def measure_ranges(model: OnnxModel, feeds: tuple[NamedFeed, ...], *, threads: int = 1) -> tuple[TensorRange, ...]:
    """Run ``model`` with every value of its main graph made visible; return the range of each float32 one, in the order of the nodes.

    Raises:
        ModelNotSupported: ONNX Runtime does not run the model (E623).
    """
    import onnx

    proto = onnx.load(str(model.path))
    floats = {value.name for value in (*proto.graph.value_info, *proto.graph.output) if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    nodes = list(proto.graph.node)
    names = [name for node in nodes for name in node.output if name in floats]
    known = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    outputs = (*model.outputs, *(TensorSpec(name, (), "") for name in names if name not in known))
    counts = {name: _Count() for name in names}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "visible.onnx"
        write_bytes(path, proto.SerializeToString())
        with OnnxruntimeRunner(dataclasses.replace(model, path=path, outputs=outputs), name="onnx, visible", threads=threads) as runner:
            for named in feeds:
                rows = min(named.batch, _ROWS) if isinstance(model.inputs[0].shape[0], str) else named.batch
                for start in range(0, named.num_samples, rows):
                    fed = {name: array[start : start + rows] for name, array in named.feed.items()}
                    found = {**fed, **runner.infer(fed)}
                    for node in nodes:
                        for name in node.output:
                            if name in counts:
                                counts[name].add_(found[name], _summed(node, found))
    made = ((name, node) for node in nodes for name in node.output if name in counts)
    return tuple(TensorRange(name, node.op_type, _places(name, node, nodes), *counts[name].numbers()) for name, node in made)


class _Count:
    """What is known of one tensor so far."""

    def __init__(self) -> None:
        self.largest, self.summed, self.num_small, self.num, self.is_finite = 0.0, 0.0, 0, 0, True

    def add_(self, values: Array, summed: float) -> None:
        size = np.abs(values)
        finite = np.isfinite(size)
        self.largest = max(self.largest, float(size.max(initial=0.0, where=finite)))
        self.summed = max(self.summed, summed)
        self.num_small += int(np.count_nonzero((size > 0) & (size < FLOAT16_SMALLEST_NORMAL)))
        self.num += size.size
        self.is_finite &= bool(finite.all())

    def numbers(self) -> tuple[float, float, bool, float]:
        return self.largest, self.num_small / max(self.num, 1), self.is_finite, self.summed


def _summed(node: Any, found: dict[str, Array]) -> float:  # noqa: ANN401 - onnx has no types for the nodes of a message
    """Return the most that a sum inside of ``node`` may come to: the number of values summed times the largest of them."""
    if node.op_type not in _SUMS or node.input[0] not in found:
        return 0.0
    values, made = found[node.input[0]], found[node.output[0]]
    kernel = next((attribute.ints for attribute in node.attribute if attribute.name == "kernel_shape"), None)
    count = math.prod(kernel) if kernel is not None else values.size / max(made.size, 1)
    size = np.abs(values)
    largest = float(size.max(initial=0.0, where=np.isfinite(size)))
    return float(count * largest ** _SUMS[node.op_type])


def _places(name: str, producer: object, nodes: list[object]) -> tuple[str, ...]:
    users = [producer, *(node for node in nodes if name in node.input)]  # type: ignore[attr-defined]
    modules = ({entry.key: entry.value for entry in node.metadata_props}.get("exporter.module", "") or node.name for node in users)  # type: ignore[attr-defined]
    return tuple(dict.fromkeys(modules))
