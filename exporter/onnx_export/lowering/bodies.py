"""Operators newer than opset 17 that ONNX itself defines by others: ``Attention``, ``RMSNormalization``, ``CenterCropPad``, ...

Their definition is a function in the operator's schema. It is put in the operator's place, and what it is made of is lowered in turn.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from exporter.onnx_export.lowering.form import schema_of
from exporter.onnx_export.lowering.making import OPSET

__all__ = ["expand_"]

_DOMAIN = "exporter.definitions"


def expand_(model: ir.Model, opset: int, *, own: frozenset[str]) -> bool:
    """Replace every operator that opset 17 lacks by ONNX's definition of it, again and again; return whether any was.

    Args:
        model: changed in place; its functions are already inlined.
        opset: of the model.
        own: operators that have a rule of their own.
    """
    has_changed = False
    while found := [node for node in model.graph.all_nodes() if not node.domain and node.op_type not in own and _is_defined(node, opset)]:
        has_changed = True
        for number, node in enumerate(found):
            _call_definition_(model, node, opset, number)
        common.InlinePass()(model)
        common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        model.opset_imports.pop(_DOMAIN, None)
        common.ShapeInferencePass()(model)
    return has_changed


def _is_defined(node: ir.Node, opset: int) -> bool:
    schema: Any = schema_of(node.op_type, opset)  # onnx's type hints know less of a schema than it has
    is_missing = schema is not None and schema_of(node.op_type, OPSET) is None
    return is_missing and (schema.has_function or schema.has_context_dependent_function)


def _call_definition_(model: ir.Model, node: ir.Node, opset: int, number: int) -> None:
    """Let ``node`` call a function of the model that is ONNX's definition of the operator for its inputs' dtypes."""
    schema: Any = onnx.defs.get_schema(node.op_type, opset, "")
    body = _definition(node, schema, opset)
    for name, formal in schema.attributes.items():  # a definition may refer to an attribute that the node leaves to its default
        if name not in node.attributes and formal.default_value.type != onnx.AttributeProto.UNDEFINED:
            node.attributes.add(ir.serde.deserialize_attribute(formal.default_value))
    body.domain, body.name = _DOMAIN, f"{node.op_type}_{number}"
    del body.output[len(node.outputs) :]  # a definition does not make the outputs that no one asked for
    function = ir.serde.deserialize_function(body)
    model.functions[function.identifier()] = function
    model.opset_imports[_DOMAIN] = 1
    node.domain, node.op_type = _DOMAIN, body.name


def _definition(node: ir.Node, schema: Any, opset: int) -> onnx.FunctionProto:  # noqa: ANN401 - see above
    body = onnx.FunctionProto()
    if schema.has_context_dependent_function:
        version = max(known for known in schema.context_dependent_function_opset_versions if known <= opset)
        types = [_type_of(value) for value in node.inputs]
        proto = ir.to_proto(node).SerializeToString()
        body.ParseFromString(schema.get_context_dependent_function_with_opset_version(version, proto, types))
    else:
        version = max(known for known in schema.function_opset_versions if known <= opset)
        body.ParseFromString(schema.get_function_with_opset_version(version))
    return body


def _type_of(value: ir.Value | None) -> bytes:
    proto = onnx.TypeProto()
    if value is not None and value.type is not None:
        ir.serde.serialize_type_into(proto, value.type)
        if value.shape is not None:
            ir.serde.serialize_shape_into(proto, value.shape)
    return bytes(proto.SerializeToString())
