"""Holding float32 islands in float32 before TensorRT 10, where a network has no types: layer by layer, and the builder has to obey.

The parser calls a node's first layer like the node, further ones with a number behind it, and from 8.6 on writes the node's name into the
metadata of each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from exporter.trt_worker.serving.features import has

__all__ = ["hold_in_float32"]

_IN_METADATA = re.compile(r"\[ONNX Layer: (.*?)\]")
_NUMBERED = re.compile(r"_\d+$")


def hold_in_float32(
    trt: Any,  # noqa: ANN401 - TensorRT has no types
    network: Any,  # noqa: ANN401
    config: Any,  # noqa: ANN401
    nodes: Mapping[str, Any],
) -> dict[str, Any]:
    """Let the layers of ``nodes`` compute in float32; return how many layers that are, and which nodes have none.

    Args:
        trt: TensorRT.
        network: parsed.
        config: of the builder; it is told to obey where there is something to obey.
        nodes: ``outputs``, node -> names of its outputs, and ``namesakes``, other nodes that are called like one of these with a number.

    Returns:
        ``layers`` and ``not_found``; nothing where the network is strongly typed, or has no islands.
    """
    outputs: Mapping[str, Sequence[str]] = nodes.get("outputs", {})
    if not outputs or not has(trt, "precision flags"):
        return {}
    owners = {name: node for node, names in outputs.items() for name in names}
    found: set[str] = set()
    count = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        tensors = [layer.get_output(position) for position in range(layer.num_outputs)]
        node = _node_of(trt, layer, tensors, outputs, owners, nodes["namesakes"])
        if node is None:
            continue
        found.add(node)
        floating = [position for position, tensor in enumerate(tensors) if tensor is not None and tensor.dtype == trt.DataType.FLOAT]
        if not floating or layer.type == trt.LayerType.CONSTANT:
            continue
        layer.precision = trt.DataType.FLOAT
        for position in floating:
            layer.set_output_type(position, trt.DataType.FLOAT)
        count += 1
    if count:
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    return {"layers": count, "not_found": sorted(set(outputs) - found)}


def _node_of(
    trt: Any,  # noqa: ANN401 - TensorRT has no types
    layer: Any,  # noqa: ANN401
    tensors: Sequence[Any],
    outputs: Mapping[str, Sequence[str]],
    owners: Mapping[str, str],
    namesakes: Sequence[str],
) -> str | None:
    if has(trt, "layer metadata"):
        told = _IN_METADATA.findall(layer.metadata or "")
        if told:
            return next((name for name in told if name in outputs), None)
    name = str(layer.name)
    if name in outputs:
        return name
    for tensor in tensors:
        if tensor is not None and tensor.name in owners:
            return owners[tensor.name]
    base = _NUMBERED.sub("", name)
    return base if base in outputs and name not in namesakes else None
