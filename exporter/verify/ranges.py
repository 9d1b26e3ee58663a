"""How large the values of a float32 ONNX model become, tensor by tensor, on the feeds: what float16 would make of them."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.artifacts import OnnxModel, TensorSpec
from exporter.files import write_bytes
from exporter.runners.onnxruntime import OnnxruntimeRunner
from exporter.verify.feeds import NamedFeed

__all__ = ["FLOAT16_LARGEST", "FLOAT16_SMALLEST_NORMAL", "TensorRange", "measure_ranges"]

FLOAT16_LARGEST = 65504.0
FLOAT16_SMALLEST_NORMAL = 2.0**-14
_ROWS = 4
"""Rows run at once: every tensor of the model is kept meanwhile."""


@dataclass(frozen=True, slots=True)
class TensorRange:
    """One tensor.

    Attributes:
        places: modules of the node that makes it and of those that read it, the node's name where it has none.
        largest: largest magnitude; infinity where the model itself made one.
        small_share: share of the values that are not zero and below float16's normal numbers.
    """

    tensor: str
    op: str
    places: tuple[str, ...]
    largest: float
    small_share: float


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
    counts = {name: [0.0, 0, 0] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "visible.onnx"
        write_bytes(path, proto.SerializeToString())
        with OnnxruntimeRunner(dataclasses.replace(model, path=path, outputs=outputs), name="onnx, visible", threads=threads) as runner:
            for named in feeds:
                rows = min(named.batch, _ROWS) if isinstance(model.inputs[0].shape[0], str) else named.batch
                for start in range(0, named.num_samples, rows):
                    found = runner.infer({name: array[start : start + rows] for name, array in named.feed.items()})
                    for name in names:
                        _count_(counts[name], found[name])
    return tuple(
        TensorRange(name, node.op_type, _places(name, node, nodes), counts[name][0], counts[name][1] / max(counts[name][2], 1))
        for node in nodes
        for name in node.output
        if name in counts
    )


def _count_(count: list[float], values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    size = np.abs(values)
    count[0] = max(count[0], float(size.max(initial=0.0)))
    count[1] += int(np.count_nonzero((size > 0) & (size < FLOAT16_SMALLEST_NORMAL)))
    count[2] += size.size


def _places(name: str, producer: object, nodes: list[object]) -> tuple[str, ...]:
    users = [producer, *(node for node in nodes if name in node.input)]  # type: ignore[attr-defined]
    modules = ({entry.key: entry.value for entry in node.metadata_props}.get("exporter.module", "") or node.name for node in users)  # type: ignore[attr-defined]
    return tuple(dict.fromkeys(modules))
