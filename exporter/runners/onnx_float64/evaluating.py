"""Run a widened model node after node; a value is dropped where nobody reads it any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from exporter.errors import ModelNotSupported
from exporter.runners.base import Array
from exporter.runners.onnx_float64.operators import OPERATORS
from exporter.runners.onnx_float64.widening import widened_constants, widened_model

__all__ = ["Float64Evaluator"]

_RANDOM = frozenset({"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"})
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What the evaluator raises for an operator or an attribute that it does not know, or on arrays that do not fit."""


class Float64Evaluator:
    """An ONNX model in float64.

    Raises:
        ModelNotSupported: an operator is not known, or draws random numbers (E621).
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._constants = widened_constants(model)
        widened = widened_model(model)
        for node in _all_nodes(widened.graph):
            if node.op_type in _RANDOM:
                raise _not_run(node, "it draws random numbers")
        try:
            self._evaluator = _Evaluator(widened, new_ops=list(OPERATORS))
        except _FAILURES as err:
            raise ModelNotSupported("E621", "the ONNX model does not run in float64", facts={"found": _first_line(err)}) from err
        self._readers = Counter(name for node in self._evaluator.nodes_ for name in node.input)
        self._readers.update(value.name for value in widened.graph.output)
        self._readers.update(name for node in self._evaluator.nodes_ for name in _read_inside(node))

    def run(self, feed: Mapping[str, Array], observe: Callable[[onnx.NodeProto, tuple[Array, ...]], None] | None = None) -> dict[str, Array]:
        """Return the outputs; ``observe`` sees every node's outputs as they are made.

        Raises:
            ModelNotSupported: an operator does not run on these inputs in float64 (E621).
        """
        values: dict[str, Any] = {"": None, **self._constants, **feed}
        left = Counter(self._readers)
        for node in self._evaluator.rt_nodes_:
            outputs = _run_node(node, values)
            if observe is not None:
                observe(node.onnx_node, outputs)
            values.update((name, array) for name, array in zip(node.output, outputs, strict=False) if left[name])
            for name in node.input:
                left[name] -= 1
                if name and not left[name] and name not in self._constants:
                    values.pop(name, None)
        return {name: values[name] for name in self._evaluator.output_names}


class _Evaluator(ReferenceEvaluator):
    """The evaluator of ONNX, whose complaint about an operator names the node."""

    def _load_impl(self, node: onnx.NodeProto, input_types: Any = None) -> Any:  # noqa: ANN401 - as the method that it wraps
        try:
            return super()._load_impl(node, input_types)
        except onnx.reference.op_run.RuntimeContextError:
            raise  # it is asked again, with types
        except _FAILURES as err:
            raise _not_run(node, "ONNX's reference evaluator does not have it") from err


def _run_node(node: Any, values: dict[str, Any]) -> tuple[Array, ...]:  # noqa: ANN401 - onnx's operators are untyped
    try:
        with np.errstate(all="ignore"):  # infinities and NaN are values; what they mean is judged at the outputs
            context = {"context": values} if node.need_context() else {}
            outputs: tuple[Array, ...] = node.run(*(values[name] for name in node.input), **context)
    except _FAILURES as err:
        cause = err.__cause__ if isinstance(err, TypeError) and err.__cause__ is not None else err
        raise _not_run(node.onnx_node, _first_line(cause)) from err
    if any(str(getattr(array, "dtype", "")) in {"float32", "float16"} for array in outputs):
        raise _not_run(node.onnx_node, "ONNX's reference evaluator computes it in float32")
    return outputs


def _not_run(node: onnx.NodeProto, why: str) -> ModelNotSupported:
    operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    name = node.name or next(iter(node.output), "")
    facts = {"operator": operator, "node": repr(name), "found": f"{operator}, node {name!r}: {why}"}
    return ModelNotSupported("E621", f"the ONNX model does not run in float64: {operator}", facts=facts)


def _first_line(err: BaseException) -> str:
    return (str(err).strip() or type(err).__name__).split("\n")[0][:300]


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for inner in _graphs(node):
            yield from _all_nodes(inner)


def _read_inside(node: onnx.NodeProto) -> set[str]:
    """Return the names that graphs inside ``node`` read; those that are their own do no harm."""
    found = {name for inner in _graphs(node) for part in _all_nodes(inner) for name in part.input}
    return found | {value.name for inner in _graphs(node) for value in inner.output}


def _graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
