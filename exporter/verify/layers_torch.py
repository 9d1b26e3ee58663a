"""Run an exported program node by node and keep every value."""

from __future__ import annotations

from typing import Any

import torch

from exporter.artifacts import TensorSpec
from exporter.errors import ModelNotSupported
from exporter.runners.base import Feed
from exporter.runners.torch import array_from_tensor, cast_module, tensor_from_array
from exporter.verify.layers import Observed, RawNode, assign_keys

__all__ = ["observe_program"]


_HALVES = {"float16": (11, -13), "bfloat16": (8, -125)}
"""Precision -> significant bits, and the exponent (with the significand below 1) of the smallest number that has them all."""


def observe_program(program: torch.export.ExportedProgram, inputs: tuple[TensorSpec, ...], feed: Feed, *, rounded: str = "") -> list[Observed]:
    """Run ``program`` in float64 on the CPU; return its operators in order with their values.

    Args:
        program: traced.
        inputs: of it.
        feed: what it is run on.
        rounded: ``float16`` or ``bfloat16``: inputs, weights and what each operator returns are rounded to its digits, and overflow nowhere.

    Raises:
        ModelNotSupported: E624, it cannot be run node by node in float64.
    """
    module = cast_module(program.module(check_guards=False), torch.float64, torch.device("cpu"))
    if not isinstance(module, torch.fx.GraphModule):
        raise ModelNotSupported("E624", "the program cannot be run node by node", facts={"found": type(module).__name__})
    recorder = _Recorder(module, rounded)
    tensors = [tensor_from_array(feed[spec.name]) for spec in inputs]
    try:
        with torch.inference_mode():
            recorder.run(*(t.double() if t.is_floating_point() else t for t in tensors))
    except (RuntimeError, NotImplementedError) as err:
        raise ModelNotSupported("E624", "the program cannot be run node by node in float64", facts={"found": str(err).split("\n")[0]}) from err
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    keys = assign_keys([_raw(node) for node in nodes])
    return [
        Observed(
            node=node.name,
            op=str(node.target),
            key=keys.get(node.name),
            value=array_from_tensor(recorder.values[node.name]) if node.name in recorder.values else None,
            producers=tuple(producer.name for producer in node.all_input_nodes),
            number=number,
        )
        for number, node in enumerate(nodes, 1)
    ]


class _Recorder(torch.fx.Interpreter):
    def __init__(self, module: torch.fx.GraphModule, rounded: str) -> None:
        super().__init__(module)
        self._half = _HALVES.get(rounded)
        self.values: dict[str, torch.Tensor] = {}

    def run_node(self, n: torch.fx.Node) -> Any:  # noqa: ANN401 - torch's signature
        value = super().run_node(n)
        if self._half is not None and isinstance(value, torch.Tensor) and value.is_floating_point():
            value = _rounded(value, *self._half)
        if n.op == "call_function" and isinstance(value, torch.Tensor) and value.is_floating_point():
            self.values[n.name] = value.clone()  # a later operator may write into it
        return value


def _rounded(value: torch.Tensor, bits: int, lowest: int) -> torch.Tensor:
    exponent = torch.frexp(value).exponent.clamp(min=lowest)
    step = torch.ldexp(torch.ones_like(value), exponent - bits)
    return torch.round(value / step) * step


def _raw(node: torch.fx.Node) -> RawNode:
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return RawNode(node.name, "", None, str(node.target))
    key, (path, _) = list(stack.items())[-1]
    call = key.rpartition("@")[2] if "@" in key else "0"
    return RawNode(node.name, path.partition("@")[0], int(call) if call.isdigit() else 0, str(node.target))
