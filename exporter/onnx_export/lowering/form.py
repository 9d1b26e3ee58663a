"""Has a node a form in opset 17 as it stands? The operators' own schemas say."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from exporter.onnx_export.lowering.making import OPSET, NoFormError

__all__ = ["fit_", "schema_of"]

_NEW_VALUES = {
    ("Pad", "mode"): {"wrap"},
    ("Resize", "coordinate_transformation_mode"): {"half_pixel_symmetric"},
    ("ScatterElements", "reduction"): {"max", "min"},
    ("ScatterND", "reduction"): {"max", "min"},
}
"""Attributes that opset 17 has, with values that it has not."""

_ADVICE = {
    "AveragePool": "pool without dilation",
    "Cast": "keep the dtypes of opset 17: float32, float16, float64, bfloat16 and integers of 8 bits or more",
    "Col2Im": "write F.fold as a transposed convolution",
    "DeformConv": "a plugin is the only way to a deformable convolution in TensorRT 8",
    "DequantizeLinear": "quantise to int8 or uint8, by tensor or by channel",
    "QuantizeLinear": "quantise to int8 or uint8, by tensor or by channel",
    "Pad": "pad with Concat of slices instead of mode wrap",
    "Resize": "resize with antialias=False, or before the network",
    "ScatterElements": "scatter without a reduction by max or min",
    "ScatterND": "scatter without a reduction by max or min",
}


def schema_of(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    """Return the operator's schema in ``opset``, None where it has none."""
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    return None if schema.deprecated else schema


def fit_(node: ir.Node, opset: int) -> None:
    """Take attributes of ``opset`` that say nothing off ``node``, and raise unless opset 17 has the rest.

    Raises:
        NoFormError: the operator, an attribute, an input or a dtype came later than opset 17.
    """
    old, new = schema_of(node.op_type, OPSET), schema_of(node.op_type, opset)
    advice = _ADVICE.get(node.op_type, "")
    if old is None:
        raise NoFormError(f"came with opset {new.since_version if new else opset}", advice)
    for name, attribute in list(node.attributes.items()):
        if name in old.attributes:
            if (value := attribute.value) in _NEW_VALUES.get((node.op_type, name), set()):
                raise NoFormError(f"has {name} = {value!r}, which came after opset {OPSET}", advice)
        elif new is not None and name in new.attributes and not _says_nothing(attribute, new):
            raise NoFormError(f"has {name} = {attribute.value!r}, which came with opset {new.since_version} at the latest", advice)
        else:
            del node.attributes[name]
    while node.inputs and node.inputs[-1] is None:
        node.resize_inputs(len(node.inputs) - 1)
    if len(node.inputs) > old.max_input:
        raise NoFormError(f"has {len(node.inputs)} inputs, of which opset {OPSET} takes {old.max_input}", advice)
    _check_dtypes(node, old, advice)


def _says_nothing(attribute: ir.Attr, schema: onnx.defs.OpSchema) -> bool:
    """Return whether an attribute has its default, or stands for no dilation at all."""
    default = schema.attributes[attribute.name].default_value
    value = attribute.value
    if attribute.name == "dilations":
        return set(value) == {1}
    if default.type == onnx.AttributeProto.UNDEFINED:
        return False
    return bool(onnx.helper.get_attribute_value(default) == (value.encode() if isinstance(value, str) else value))


def _check_dtypes(node: ir.Node, schema: onnx.defs.OpSchema, advice: str) -> None:
    for values, formal in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for position, value in enumerate(values):
            if value is None or not isinstance(value.type, ir.TensorType):
                continue
            kind = formal[min(position, len(formal) - 1)]
            name = value.type.dtype.name.lower()
            if f"tensor({name})" not in kind.types and value.type.dtype.name != "UNDEFINED":
                raise NoFormError(f"computes with {name}, which it takes only after opset {OPSET}", advice or "take float32 or float16")
