"""Run an ONNX model with the output of every named node made visible."""

from __future__ import annotations

import ast
import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifacts import OnnxModel, TensorSpec
from exporter.errors import ModelNotSupported
from exporter.files import write_bytes
from exporter.runners.base import Feed
from exporter.runners.onnxruntime import OnnxruntimeRunner
from exporter.verify.layers import Observed, RawNode, assign_keys

if TYPE_CHECKING:
    import onnx

__all__ = ["observe_onnx"]

_MODULE = "exporter.module"
_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"
_LIMIT_BYTES = 1 << 30


def observe_onnx(model: OnnxModel, feed: Feed) -> list[Observed]:
    """Run ``model`` in ONNX Runtime on the CPU in its own precision; return its operators in order with their values.

    In half precision every operator computes in float32 and its value is rounded, as in the runner that judges such a model.
    Making values visible keeps the runtime from fusing operators, so an error of a fused kernel does not show here.

    Raises:
        ModelNotSupported: E625, the nodes do not say which module they come from, or the file is over 1 GiB.
    """
    import onnx

    from exporter.runners.onnx_rounded import rounding_model

    if model.path.stat().st_size > _LIMIT_BYTES:
        raise ModelNotSupported("E625", "the ONNX model is too large to be searched layer by layer", facts={"file": model.path})
    proto = onnx.load(str(model.path))
    nodes, halves = list(proto.graph.node), _stored_in_half(proto)
    raw: list[RawNode] = []
    for node in nodes:
        place = _place_of({entry.key: entry.value for entry in node.metadata_props} or _noted(node.doc_string), node.op_type)
        is_border = node.op_type == "Cast" and not halves.isdisjoint((*node.input, *node.output))
        if place is not None and node.output and not is_border:
            raw.append(RawNode(node.output[0], place[0], None, place[1]))
    if not raw:
        raise ModelNotSupported("E625", "the nodes of the ONNX model do not say which module they come from", facts={"file": model.path})
    keys = assign_keys(_with_calls(raw))
    producer_of = {output: node.name for node in nodes for output in node.output}
    rounded = set(halves)
    observed = []
    for number, node in enumerate(nodes, 1):
        is_rounded = not rounded.isdisjoint((*node.input, *node.output))
        rounded.update(node.output if is_rounded else ())
        key = keys.get(node.output[0]) if node.output else None
        producers = tuple(producer_of[name] for name in node.input if name in producer_of)
        observed.append((node.output[0] if node.output else "", Observed(node.name, node.op_type, key, None, producers, number, is_rounded)))
    if halves:
        proto = rounding_model(proto)
    known = {value.name for value in proto.graph.output}
    for name in keys:
        if name not in known:
            proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    outputs = (*model.outputs, *(TensorSpec(name, (), "") for name in keys if name not in known))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "observed.onnx"
        write_bytes(path, proto.SerializeToString())
        with OnnxruntimeRunner(dataclasses.replace(model, path=path, outputs=outputs), name="onnx, observed") as runner:
            values = runner.infer(feed)
    return [dataclasses.replace(layer, value=values.get(output) if layer.key is not None else None) for output, layer in observed]


def _stored_in_half(proto: onnx.ModelProto) -> set[str]:
    """Return the values and constants that are in half precision."""
    import onnx

    kinds = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    values = {value.name for value in proto.graph.value_info if value.type.tensor_type.elem_type in kinds}
    return values | {tensor.name for tensor in proto.graph.initializer if tensor.data_type in kinds}


def _with_calls(raw: list[RawNode]) -> list[RawNode]:
    """Say which call of its module a node belongs to.

    ONNX nodes do not tell calls apart. Where every operator of a module occurs as often as its last one, the module was
    called that often and the k-th occurrence belongs to the k-th call; where they differ, the module was called once.
    """
    by_path: dict[str, list[RawNode]] = {}
    for node in raw:
        by_path.setdefault(node.path, []).append(node)
    numbered: dict[str, int] = {}
    for nodes in by_path.values():
        ops = [node.op for node in nodes]
        is_repeated = len({ops.count(op) for op in ops}) == 1
        seen: dict[str, int] = {}
        for node in nodes:
            numbered[node.node] = seen.get(node.op, 0) if is_repeated else 0
            seen[node.op] = seen.get(node.op, 0) + 1
    return [dataclasses.replace(node, call=numbered[node.node]) for node in raw]


def _noted(documentation: str) -> dict[str, str]:
    """Return the module of a node whose IR version has no metadata of nodes: there it stands in the documentation."""
    key, _, module = documentation.partition(": ")
    return {key: module} if key == _MODULE else {}


def _place_of(properties: Mapping[str, str], op_type: str) -> tuple[str, str] | None:
    """Return module name and operator of a node: as this tool's export notes them, else as torch's exporter does."""
    if _MODULE in properties:
        return properties[_MODULE], op_type
    scopes, classes = _names(properties.get(_SCOPES, "")), _names(properties.get(_CLASSES, ""))
    return (scopes[-2], classes[-1]) if len(scopes) > 1 and classes else None


def _names(text: str) -> list[str]:
    try:
        value = ast.literal_eval(text) if text else []
    except (ValueError, SyntaxError):
        return []
    return [str(item) for item in value] if isinstance(value, list) else []
