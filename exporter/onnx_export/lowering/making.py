"""New nodes and constants beside an old node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["OPSET", "Maker", "NoFormError", "constant_of", "integers_of", "rank_of"]

OPSET = 17
"""What everything is lowered to."""


class NoFormError(Exception):
    """A node has no form in opset 17.

    Attributes:
        reason: why, in words that follow on the operator's name.
        advice: what to do about it; empty where there is nothing special.
        at_run_time: there is a form, but it depends on values that only a run knows.
    """

    def __init__(self, reason: str, advice: str = "", *, at_run_time: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.advice, self.at_run_time = reason, advice, at_run_time


class Maker:
    """Collects the nodes that stand for ``node``, and puts constants into the main graph.

    Args:
        node: the old node; new values are named after its first output.
        main: the main graph, whose initializers every subgraph sees.
    """

    def __init__(self, node: ir.Node, main: ir.Graph) -> None:
        self.node, self._main = node, main
        self.nodes: list[ir.Node] = []
        self._num_constants = 0

    def __call__(self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any] | None = None) -> ir.Value:
        """Return the output of a new node."""
        node = ir.node(op_type, inputs, attributes or {}, name=f"{self.node.name or self._stem}/{len(self.nodes)}_{op_type}")
        node.outputs[0].name = f"{self._stem}/{len(self.nodes)}_{op_type}"
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, array: NDArray[Any]) -> ir.Value:
        """Return an initializer."""
        name = f"{self._stem}/constant_{self._num_constants}"
        self._num_constants += 1
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)  # type: ignore[arg-type]
        self._main.register_initializer(value)
        return value

    def integers(self, numbers: Sequence[int]) -> ir.Value:
        """Return an initializer of int64, shape ``(len(numbers),)``."""
        return self.constant(np.asarray(numbers, np.int64))

    def like(self, value: ir.Value, number: float) -> ir.Value:
        """Return a scalar initializer in the dtype of ``value``.

        Raises:
            NoFormError: the dtype is not known.
        """
        if value.dtype is None:
            raise NoFormError("has an input whose dtype is not known", at_run_time=True)
        return self.constant(np.asarray(number, np.float64).astype(value.dtype.numpy()))

    @property
    def _stem(self) -> str:
        return self.node.outputs[0].name or "value"


def constant_of(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the value where it is the same in every run, else None."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def integers_of(value: ir.Value | None) -> list[int] | None:
    """Return the numbers of a constant with one axis at most, None where it is computed."""
    array = constant_of(value)
    return None if array is None else [int(number) for number in array.reshape(-1)]


def rank_of(value: ir.Value) -> int:
    """Return the number of axes.

    Raises:
        NoFormError: it is not known.
    """
    if value.shape is None:
        raise NoFormError("has an input whose number of axes is not known", at_run_time=True)
    return len(value.shape)
