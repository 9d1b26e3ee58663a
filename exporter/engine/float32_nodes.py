"""The float32 islands of a model in half precision, by the names that TensorRT's parser has for their nodes.

A strongly typed network keeps them by itself. Before TensorRT 10 the builder may choose float16 for them too, unless their layers are told
otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from exporter.artifacts import OnnxModel

if TYPE_CHECKING:
    import onnx

__all__ = ["Float32Nodes", "find_float32_nodes"]

_NOT_COMPUTED = {"Cast", "Constant", "DequantizeLinear", "QuantizeLinear"}
_NUMBERED = re.compile(r"_\d+$")


@dataclass(frozen=True, slots=True)
class Float32Nodes:
    """Nodes that compute in float32 where most do not.

    Attributes:
        outputs: node -> its outputs.
        namesakes: nodes beside them that are called like one of them with a number behind it, as the parser calls a node's further layers.
    """

    outputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    namesakes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what the worker is told."""
        return {"outputs": {name: list(outputs) for name, outputs in self.outputs.items()}, "namesakes": list(self.namesakes)}


def find_float32_nodes(model: OnnxModel) -> Float32Nodes:
    """Return the nodes of the main graph whose floating outputs are all float32; none of a model that is not in float16."""
    if model.precision != "float16":
        return Float32Nodes()
    import onnx

    proto = onnx.shape_inference.infer_shapes(onnx.load(model.path, load_external_data=False))
    graph = proto.graph
    types = {value.name: value.type.tensor_type.elem_type for values in (graph.input, graph.value_info, graph.output) for value in values}
    floating = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    found: dict[str, tuple[str, ...]] = {}
    for node in graph.node:
        kinds = {types.get(name, 0) for name in node.output} & floating
        if kinds == {onnx.TensorProto.FLOAT} and node.op_type not in _NOT_COMPUTED:
            found[_name_of(node)] = tuple(name for name in node.output if types.get(name, 0) == onnx.TensorProto.FLOAT)
    names = {_name_of(node) for node in graph.node} - set(found)
    return Float32Nodes(found, tuple(sorted(name for name in names if _NUMBERED.sub("", name) in found)))


def _name_of(node: onnx.NodeProto) -> str:
    return node.name or f"node_of_{node.output[0]}"
