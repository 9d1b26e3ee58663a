"""Computing ahead what does not depend on the inputs: weights that are transposed, normalised or standardised, statistics, zero biases.

What an exporter writes as nodes over initializers is constant all the same: the transposed weight of a linear layer, the factor of a
frozen BatchNorm, the bias ``Expand(CastLike(0, x), Shape(W))`` of a convolution that has none. It is computed once, in float64, and
rounded once; then the folds see weights and numbers like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import onnx_ir as ir

from exporter.graph.algebra import Float64
from exporter.graph.onnx.editing import ModelEditor
from exporter.graph.onnx.evaluation import OPERATORS, Array, evaluated, in_dtype, widened
from exporter.graph.onnx.nodes import is_standard, label_of
from exporter.graph.onnx.shapes import TensorType, known_tensor

__all__ = ["FLOATS", "Computed", "Known", "compute_constants_", "drop_zero_biases_"]

FLOATS = {"float32", "float64", "float16", "bfloat16"}
_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_PER_CHANNEL = {"Mul", "Add", "Sub", "Div"}
_BIAS_POSITION = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}


class Known:
    """The values of a model that depend on no input, and their numbers.

    Args:
        model: its nodes stand in the order of execution.
        types: dtype and shape of its values.
    """

    def __init__(self, model: ir.Model, types: Mapping[str, TensorType]) -> None:
        self._types = types
        self._opset = model.opset_imports.get("", 1)
        self._numbers: dict[ir.Value, Array | None] = {}
        self._given = {value for value in model.graph.initializers.values() if known_tensor(value) is not None}
        self._computed: set[ir.Value] = set()
        for node in model.graph:
            if node.op_type == "Constant" and known_tensor(node.outputs[0]) is not None:
                self._given.add(node.outputs[0])
            elif self._is_computed(node):
                self._computed.add(node.outputs[0])

    def __contains__(self, value: ir.Value | None) -> bool:
        """Return whether a value depends on no input."""
        return value in self._computed or value in self._given

    def is_computed(self, value: ir.Value) -> bool:
        """Return whether a value depends on no input and is made by a node other than a Constant."""
        return value in self._computed

    def numbers(self, value: ir.Value | None) -> Array | None:
        """Return the numbers of a constant, floating ones in float64; None for anything else, and for what cannot be computed."""
        if value is None or value not in self:
            return None
        todo = [value]
        while todo:
            here = todo[-1]
            if here in self._numbers:
                todo.pop()
            elif here not in self._computed:
                tensor = known_tensor(here)
                self._numbers[here] = None if tensor is None else widened(tensor)
            elif missing := [given for given in self._read_by(here) if given not in self._numbers]:
                todo += missing
            else:
                self._numbers[here] = self._made(here)
        return self._numbers[value]

    def integers(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Return the whole numbers of a constant, in a row."""
        found = self.numbers(value)
        return None if found is None or found.dtype.kind not in "iu" else tuple(int(number) for number in found.reshape(-1))

    def _is_computed(self, node: ir.Node) -> bool:
        if not is_standard(node) or len([value for value in node.outputs if value.name]) != 1 or node.op_type == "Constant":
            return False
        if node.op_type in {"Shape", "Size"}:
            return self._shape(node) is not None
        given = [value for value in node.inputs if value is not None]
        if node.op_type == "CastLike":
            return given[0] in self and (given[1].name or "") in self._types
        return node.op_type in OPERATORS and bool(given) and all(value in self for value in given)

    def _read_by(self, value: ir.Value) -> list[ir.Value]:
        node = cast("ir.Node", value.producer())
        if node.op_type in {"Shape", "Size"}:
            return []
        given = [each for each in node.inputs if each is not None]
        return given[:1] if node.op_type == "CastLike" else given

    def _made(self, value: ir.Value) -> Array | None:
        node = cast("ir.Node", value.producer())
        if node.op_type in {"Shape", "Size"}:
            shape = np.array(self._shape(node), dtype=np.int64)
            return shape if node.op_type == "Shape" else np.asarray(shape.prod())
        inputs = [None if given is None else self._numbers.get(given) for given in node.inputs]
        if any(given is not None and array is None for given, array in zip(node.inputs, inputs, strict=True)) and node.op_type != "CastLike":
            return None
        if node.op_type == "CastLike":
            return self._cast_like(node, inputs[0])
        return evaluated(node, inputs, self._opset)

    def _cast_like(self, node: ir.Node, array: Array | None) -> Array | None:
        like = self._types[(cast("ir.Value", node.inputs[1]).name or "")].dtype
        if array is None or like in FLOATS:
            return None if array is None else array.astype(np.float64)
        try:
            return in_dtype(array, ir.DataType[like.upper()])
        except (ValueError, KeyError):
            return None

    def _shape(self, node: ir.Node) -> tuple[int, ...] | None:
        """Return what a Shape makes, if every size that it takes is known."""
        value = node.inputs[0]
        known = self._types.get((value.name or "") if value is not None else "")
        if known is None or known.shape is None:
            return None
        taken = known.shape[node.attributes.get_int("start", 0) : node.attributes.get_int("end", None)]
        sizes = tuple(size for size in taken if isinstance(size, int))
        return sizes if len(sizes) == len(taken) else None


@dataclass(frozen=True, slots=True)
class Computed:
    """What was computed.

    Attributes:
        exact: name of a computed constant -> its numbers before they were rounded.
        batch_norms: names of the modules of the BatchNorms that were computed ahead.
    """

    exact: Mapping[str, Float64] = field(default_factory=dict)
    batch_norms: tuple[str, ...] = ()


def compute_constants_(model: ir.Model, types: dict[str, TensorType]) -> Computed:
    """Compute every constant of ``model`` that is a weight, a bias, or a number per channel; ``types`` gets those of the new initializers."""
    known = Known(model, types)
    editor = ModelEditor(model)
    exact: dict[str, Float64] = {}
    norms = [node for node in model.graph if node.op_type == "BatchNormalization" and is_standard(node)]
    for node in list(model.graph):
        for value in node.outputs:
            kind = types.get(value.name or "")
            if not known.is_computed(value) or kind is None or kind.dtype not in FLOATS:
                continue
            numbers = known.numbers(value) if _readers(value, known) else None
            if numbers is None or not _is_wanted(value, numbers, known):
                continue
            created = editor.add_initializer_(value.name or "", numbers, kind.dtype)
            exact[created.name or ""] = numbers
            types[created.name or ""] = TensorType(kind.dtype, numbers.shape)
            editor.replace_(value, created)
    left = set(model.graph)
    return Computed(exact, tuple(label_of(node) for node in norms if node not in left))


def drop_zero_biases_(model: ir.Model, types: dict[str, TensorType]) -> None:
    """Take the biases away that are computed and all zeros; torch's exporter writes one for every convolution that has none.

    For a convolution of three axes it has the wrong shape, which makes the file invalid; without it the file is valid.
    """
    known = Known(model, types)
    editor = ModelEditor(model)
    for node in list(model.graph):
        position = _BIAS_POSITION.get(node.op_type, -1) if is_standard(node) else -1
        bias = node.inputs[position] if 0 < position < len(node.inputs) else None
        if bias is not None and known.is_computed(bias) and (numbers := known.numbers(bias)) is not None and not numbers.any():
            editor.take_input_away_(node, position)


def _readers(value: ir.Value, known: Known) -> list[ir.Node]:
    """Return the nodes that read a value when the model runs."""
    return [node for node in value.consumers() if not (node.outputs and known.is_computed(node.outputs[0]))]


def _is_wanted(value: ir.Value, numbers: Array, known: Known) -> bool:
    """Return whether something that is computed at run time reads this as a weight or a number per channel."""
    readers = [node.op_type for node in _readers(value, known) if is_standard(node)]
    if any(kind in _PRODUCTS or kind == "BatchNormalization" for kind in readers):
        return True
    return sum(size != 1 for size in numbers.shape) <= 1 and any(kind in _PER_CHANNEL for kind in readers)
