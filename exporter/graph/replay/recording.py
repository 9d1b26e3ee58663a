"""An exported program, what the planner decided and the folded program -> a plan that can be applied again."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram

from exporter.artifacts import TensorSpec
from exporter.config import FoldConfig
from exporter.errors import FoldError
from exporter.graph.abstract import BatchNorm, ConstantAffine, Linear, Operator
from exporter.graph.aten.calls import arguments_of, dtype_name, operator_kind
from exporter.graph.aten.constants import Computed, compute_constants, with_exact
from exporter.graph.aten.normalising import normalising_calls
from exporter.graph.aten.products import MATRIX_PRODUCTS, numbers_read_by
from exporter.graph.aten.reading import ProgramConstants, abstract_graph, constant_tensor
from exporter.graph.aten.surgery import folded_program
from exporter.graph.planning import NewNumbers, Plan, make_plan
from exporter.graph.replay.coding import Encoder
from exporter.graph.replay.document import FoldPlan, Result, Value
from exporter.graph.replay.origins import CALLS, Call, Given, Origin, Stored, given_of

__all__ = ["plan_of", "recorded"]

_MOST_GIVEN_BYTES = 1 << 20
_SAME = {"alias", "clone", "contiguous", "detach", "lift_fresh_copy", "to", "_to_copy", "view", "reshape", "unsqueeze", "squeeze", "flatten"}
"""Calls that give the same numbers in the same order."""


def plan_of(program: ExportedProgram, inputs: tuple[TensorSpec, ...], config: FoldConfig) -> FoldPlan:
    """Plan the folds of ``program`` and return the plan in a form that can be applied again.

    Args:
        program: unfolded, with the normalisation of its inputs in front where ``config`` has one.
        inputs: their names, in order.
        config: of the fold.

    Raises:
        FoldError: it cannot be applied by numbers alone (E360).
    """
    normalised = normalising_calls(program, inputs, config.input)
    computed = with_exact(compute_constants(program), normalised.exact)
    constants = ProgramConstants(computed.program, computed.exact)
    plan = make_plan(abstract_graph(computed.program), constants, config, required=tuple(normalised.calls))
    return recorded(program, computed, plan, folded_program(computed.program, plan))


def recorded(program: ExportedProgram, computed: Computed, plan: Plan, folded: ExportedProgram) -> FoldPlan:
    """Return the plan in a form that can be applied again.

    Args:
        program: as it was traced.
        computed: the same with what is constant computed.
        plan: of the planner.
        folded: the result.

    Raises:
        FoldError: it cannot be applied by numbers alone (E360).
    """
    origins = _Origins(program, computed)
    targets = {spec.arg.name: spec.target for spec in computed.program.graph_signature.input_specs}
    encoder = Encoder()
    for attempt in plan.attempts:
        try:
            encoder.encode(attempt.match.route)
        except TypeError as err:
            raise _cannot(f"{attempt.rewrite} of {attempt.match.affine.module}: {err}") from err
    operators = [attempt.match.affine for attempt in plan.attempts] + [product for attempt in plan.attempts for product in attempt.match.absorbers]
    values: dict[str, Value] = {}
    for name in dict.fromkeys(name for operator in operators for name in _read_by(operator)):
        target = targets[name] or ""
        values[name] = Value(origins.of(target), dtype_name(constant_tensor(computed.program, target).dtype))
    weights = {name: TensorSpec(name, tuple(tensor.shape), dtype_name(tensor.dtype)) for name, tensor in program.state_dict.items()}
    return FoldPlan(weights, values, plan.attempts, tuple(_results(program, plan, folded, origins)))


def _read_by(operator: Operator) -> tuple[str, ...]:
    """Return the constants that a rewrite may read of an operator."""
    role = operator.role
    if isinstance(role, Linear):
        return (role.weight,) if role.bias is None else (role.weight, role.bias)
    return role.parameters if isinstance(role, (BatchNorm, ConstantAffine)) else ()


class _Origins:
    """Where the constants of a program come from."""

    def __init__(self, program: ExportedProgram, computed: Computed) -> None:
        self._program, self._computed = program, computed
        self._nodes = {node.name: node for node in program.graph.nodes}
        self._targets = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs}
        self._given: dict[str, Given] = {}

    def of(self, target: str) -> Origin:
        """Return the origin of the constant ``target``."""
        if target in self._program.state_dict:
            return Stored(target)
        if target in self._computed.nodes:
            return self._call(self._nodes[self._computed.nodes[target]])
        return self._constant(target)

    def _constant(self, target: str) -> Given:
        if target not in self._given:
            tensor = constant_tensor(self._program, target).detach().cpu()
            exact = self._computed.exact.get(target)
            size = tensor.numel() * tensor.element_size() + sum(len(given.data) for given in self._given.values())
            if size > _MOST_GIVEN_BYTES or not tensor.is_floating_point():
                raise _cannot(f"{target}, which is no part of the state dict, has {tensor.numel()} numbers of {dtype_name(tensor.dtype)}")
            self._given[target] = given_of(tensor.double().numpy() if exact is None else exact)
        return self._given[target]

    def _call(self, node: torch.fx.Node) -> Call:
        kind, call = operator_kind(node), arguments_of(node)
        known = "same" if kind in _SAME else kind
        if known not in CALLS or call.get("alpha", 1) != 1 or call.get("rounding_mode") is not None:
            raise _cannot(f"{node.name} is computed with aten.{kind}, which NumPy does not do bit for bit")
        operands = [call["self"]] if known == "same" or "other" not in call else [call["self"], call["other"]]
        return Call(known, tuple(self._operand(operand) for operand in operands), tuple(node.meta["val"].shape))

    def _operand(self, operand: Any) -> Origin | float:  # noqa: ANN401 - anything that a call is given
        if not isinstance(operand, torch.fx.Node):
            return float(operand)
        return self._call(operand) if operand.op == "call_function" else self.of(self._targets[operand.name] or "")


def _results(program: ExportedProgram, plan: Plan, folded: ExportedProgram, origins: _Origins) -> list[Result]:
    """Return where each tensor of the folded state dict comes from."""
    targets = {spec.arg.name: spec.target or "" for spec in folded.graph_signature.input_specs}
    nodes = {node.name: node for node in folded.graph.nodes}
    changed = {result.name: result for new in plan.numbers for result in _written(nodes[new.operator], new, targets, folded)}
    found = list(changed.values())
    for name, tensor in folded.state_dict.items():
        if name in changed:
            continue
        if tensor is program.state_dict.get(name):
            found.append(Result(name, dtype_name(tensor.dtype)))
        else:
            found.append(Result(name, dtype_name(tensor.dtype), origin=origins.of(name)))
    order = {name: number for number, name in enumerate(folded.state_dict)}
    return sorted(found, key=lambda result: order.get(result.name, len(order)))


def _written(node: torch.fx.Node, new: NewNumbers, targets: dict[str, str], folded: ExportedProgram) -> list[Result]:
    call, added = arguments_of(node), _added_to(node)
    weight, bias = numbers_read_by(node, {name for name, target in targets.items() if target})
    places: dict[str, torch.fx.Node | None] = {"weight": weight}
    if new.bias is not None:
        places["bias"] = added if operator_kind(node) in MATRIX_PRODUCTS else bias
    if new.border is not None:
        places["border"] = added
    groups = call.get("groups", 1) if new.ones is not None else 1
    is_transposed = new.ones is not None and (operator_kind(node).startswith("conv_transpose") or bool(call.get("transposed", False)))
    results = []
    for part, place in places.items():
        if place is None or place.name not in targets:
            raise _cannot(f"the {part} of {new.operator} is no constant of the folded network")
        name = targets[place.name]
        results.append(Result(name, dtype_name(constant_tensor(folded, name).dtype), new.operator, part, groups, is_transposed))  # type: ignore[arg-type]
    return results


def _added_to(node: torch.fx.Node) -> torch.fx.Node | None:
    """Return the constant that the call behind ``node`` adds to it, before it was given the axes of the output."""
    sums = (arguments_of(user) for user in node.users if operator_kind(user) == "add")
    added = next((addition["other"] for addition in sums if addition["self"] is node), None)
    if isinstance(added, torch.fx.Node) and operator_kind(added) == "unsqueeze":
        return added.all_input_nodes[0]
    return added if isinstance(added, torch.fx.Node) else None


def _cannot(found: str) -> FoldError:
    return FoldError(
        "E360", "this fold cannot be applied again by numbers alone", facts={"found": found}, help="fold the network anew for new weights"
    )
